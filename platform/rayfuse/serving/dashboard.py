"""Client of the Ray dashboard's HTTP API for Ray Serve. Imports Ray only to resolve a `host:port`."""

import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from rayfuse.errors import UnavailableError
from rayfuse.ray_auth import token
from rayfuse.ray_http import RayHttp, check_address
from rayfuse.ray_patches import current_dashboard_address

_APPLICATIONS = "/api/serve/applications/"
_PROBE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Dashboard(RayHttp):
    """Ray Serve and the resources of one cluster.

    Every method raises UnavailableError where the dashboard is unreachable or denies access.
    """

    def serve_details(self) -> dict[str, Any]:
        """Return Serve's details (ServeInstanceDetails): `applications` by name, `http_options`, `proxies`."""
        return self.parse(self.request("GET", _APPLICATIONS, allowed_statuses=(404, 405)), dict)

    def apply(self, config: Mapping[str, Any]) -> None:
        """Apply a Serve configuration (ServeDeploySchema); applications that it does not list are deleted."""
        self.request("PUT", _APPLICATIONS, json=config)

    def shutdown_serve(self) -> None:
        """Delete all applications and shut Serve down."""
        self.request("DELETE", _APPLICATIONS)

    def total_resources(self) -> dict[str, float]:
        """Return the resources of all live nodes together, by name (`CPU`, `GPU`, …)."""
        total: dict[str, float] = {}
        nodes = self.parse(self.request("GET", "/api/v0/nodes"), dict)
        for node in nodes["data"]["result"]["result"]:
            if node["state"] == "ALIVE":
                for name, amount in node["resources_total"].items():
                    total[name] = total.get(name, 0) + amount
        return total

    def active_jobs(self) -> list[dict[str, Any]]:
        """Return the pending and running jobs and drivers."""
        jobs = self.parse(self.request("GET", "/api/jobs/"), list)
        return [job for job in jobs if job.get("status") in ("PENDING", "RUNNING")]


def connect(address: str, environment: Mapping[str, str] = os.environ) -> Dashboard:
    """Connect to the dashboard of a cluster, given its URL or a `host:port` as in `ray.init(address=…)`.

    Raises SpecError for an address of another protocol, such as that of Ray Client.
    """
    check_address(address)
    if address.startswith(("http://", "https://")):
        return Dashboard(address, token(environment))
    return Dashboard(_resolve_dashboard_url(address), token(environment))


def connect_current(environment: Mapping[str, str] = os.environ) -> Dashboard | None:
    """Connect to the dashboard of the Ray that this process is connected to; None without one. Does not import Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    address = current_dashboard_address()
    if not address:
        _log.info(
            "the Ray of this process is not used, as it has no dashboard; ray.init(include_dashboard=True) adds it"
        )
        return None
    return Dashboard(f"http://{address}", token(environment))


def _resolve_dashboard_url(address: str) -> str:
    _check_port_open(address)
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return str(ray_address_to_api_server_url(address))
    except Exception as error:  # noqa: BLE001 - Ray raises many types here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnavailableError(f"RAY_ADDRESS: no Ray cluster at {address}: {reason}") from None


def _check_port_open(address: str) -> None:
    """Fail at once; Ray would retry for most of a minute, with a log line for each attempt."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UnavailableError(f"RAY_ADDRESS: no Ray cluster at {address}: {error}") from None

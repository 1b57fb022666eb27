"""Ray's dashboard as an HTTP API: enough to bring up endpoints without importing ray."""

import os
import socket
from collections.abc import Mapping
from typing import Any

from rayfuse.errors import NotReachable
from rayfuse.ray_auth import token
from rayfuse.ray_http import RayHttp

_APPLICATIONS = "/api/serve/applications/"
_PROBE_SECONDS = 5.0


class Dashboard(RayHttp):
    """One cluster. Every method raises NotReachable where it does not answer or does not let us in."""

    def serving(self) -> dict[str, Any]:
        """All of Serve: `applications` by name, `http_options`, `proxies`."""
        found: dict[str, Any] = self.call("GET", _APPLICATIONS).json()
        return found

    def apply(self, config: Mapping[str, Any]) -> None:
        """Make Serve what `config` (a ServeDeploySchema) says; applications it leaves out are deleted."""
        self.call("PUT", _APPLICATIONS, json=config)

    def shut_serve_down(self) -> None:
        self.call("DELETE", _APPLICATIONS)

    def resources(self) -> dict[str, float]:
        """What all nodes together offer, by name (`CPU`, `GPU`, …)."""
        total: dict[str, float] = {}
        for node in self.call("GET", "/api/v0/nodes").json()["data"]["result"]["result"]:
            if node["state"] == "ALIVE":
                for name, amount in node["resources_total"].items():
                    total[name] = total.get(name, 0) + amount
        return total

    def drivers(self) -> list[dict[str, Any]]:
        """Jobs and connected programs that still run."""
        found = self.call("GET", "/api/jobs/").json()
        return [job for job in found if job.get("status") in ("PENDING", "RUNNING")]


def connect(address: str, environment: Mapping[str, str] = os.environ) -> Dashboard:
    """The dashboard of the cluster at `address`: its own URL, or a `host:port` that ray.init takes."""
    if address.startswith(("http://", "https://")):
        return Dashboard(address, token(environment))
    return Dashboard(_find(address), token(environment))


def _find(address: str) -> str:
    _probe(address)
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return str(ray_address_to_api_server_url(address))
    except Exception as error:  # noqa: BLE001 - Ray has one kind for each way to fail
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotReachable(f"no Ray cluster answers at {address}: {reason}") from None


def _probe(address: str) -> None:
    """Ray itself would try for most of a minute, and say so line by line."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NotReachable(f"no Ray cluster answers at {address}: {error}; see RAY_ADDRESS") from None

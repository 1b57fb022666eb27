"""Ray's dashboard as an HTTP API: enough to bring up endpoints without importing ray."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from rayfuse.errors import NotReachable, ResourceError

_APPLICATIONS = "/api/serve/applications/"
_SECONDS = 60.0
_PROBE_SECONDS = 5.0


class Dashboard:
    """One cluster. Every method raises NotReachable where it does not answer or does not let us in."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=self.url, headers=headers, timeout=_SECONDS, trust_env=not self.is_local
        )

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the cluster's head is this machine."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def serving(self) -> dict[str, Any]:
        """All of Serve: `applications` by name, `http_options`, `proxies`."""
        found: dict[str, Any] = self._call("GET", _APPLICATIONS).json()
        return found

    def apply(self, config: Mapping[str, Any]) -> None:
        """Make Serve what `config` (a ServeDeploySchema) says; applications it leaves out are deleted."""
        self._call("PUT", _APPLICATIONS, json=config)

    def shut_serve_down(self) -> None:
        self._call("DELETE", _APPLICATIONS)

    def resources(self) -> dict[str, float]:
        """What all nodes together offer, by name (`CPU`, `GPU`, …)."""
        total: dict[str, float] = {}
        for node in self._call("GET", "/api/v0/nodes").json()["data"]["result"]["result"]:
            if node["state"] == "ALIVE":
                for name, amount in node["resources_total"].items():
                    total[name] = total.get(name, 0) + amount
        return total

    def drivers(self) -> list[dict[str, Any]]:
        """Jobs and connected programs that still run."""
        found = self._call("GET", "/api/jobs/").json()
        return [job for job in found if job.get("status") in ("PENDING", "RUNNING")]

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise NotReachable(
                f"Ray's dashboard at {self.url} does not answer ({type(error).__name__})"
            ) from None
        if response.status_code in (401, 403):
            raise NotReachable(
                f"Ray at {self.url} does not let us in; set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
            )
        if not response.is_success:
            raise ResourceError(f"Ray at {self.url}: {method} {path}: {_reason(response)}")
        return response


def connect(address: str, environment: Mapping[str, str] = os.environ) -> Dashboard:
    """The dashboard of the cluster at `address`: its own URL, or a `host:port` that ray.init takes."""
    if address.startswith(("http://", "https://")):
        return Dashboard(address, _token(environment))
    return Dashboard(_find(address), _token(environment))


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


def _token(environment: Mapping[str, str]) -> str | None:
    """The token as Ray itself looks for it."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _reason(response: httpx.Response) -> str:
    lines = [line.strip() for line in response.text.splitlines() if line.strip()]
    return f"{response.status_code} {lines[-1][:300] if lines else ''}".strip()

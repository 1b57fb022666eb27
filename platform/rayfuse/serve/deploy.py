"""Bring an endpoint up on a Ray cluster, see how it is, and take it down: through Ray's dashboard."""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from rayfuse.errors import NotReachable, RayfuseError, ResourceError
from rayfuse.registry.fetching import Source
from rayfuse.serve import applications
from rayfuse.serve.applications import Endpoint
from rayfuse.serve.dashboard import Dashboard
from rayfuse.spec.service import Service

Say = Callable[[str], None]

_POLL_SECONDS = 0.5
_NO_ROOM = "to be scheduled"
"""In what Serve says about replicas that have waited for 30 s."""


def deploy(
    service: Service,
    source: Source,
    dashboard: Dashboard,
    say: Say = lambda _: None,
    timeout: float = 600.0,
) -> Endpoint:
    """Serve the model at `source` as `service` says, or change the endpoint of that name; waits until it answers.

    Raises ResourceError with the replica's own reason where it does not come up; what served before goes on.
    """
    serving = _make_way(service, dashboard, say)
    before = applications.configured(serving)
    surge = _has_room(service, dashboard, serving)
    wanted = applications.application(service, source, surge)
    host, port = applications.listening(serving) or (applications.host_of(service), service.port)
    dashboard.apply(applications.configuration(host, port, {**before, service.name: wanted}))
    try:
        endpoint = _wait(service.name, dashboard, say, time.monotonic() + timeout)
        _check_answers(endpoint, dashboard)
    except BaseException as error:
        if applications.present(serving):
            say(f"{service.name}: going back to what was served before")
            dashboard.apply(applications.configuration(host, port, before))
        else:
            dashboard.shut_serve_down()
        if isinstance(error, RayfuseError):
            _settle(service.name, dashboard)
        raise
    return endpoint


def status(dashboard: Dashboard) -> list[Endpoint]:
    """Every endpoint of Rayfuse on the cluster, by name."""
    serving = dashboard.serving()
    names = sorted(serving.get("applications", {}))
    found = (applications.endpoint(name, serving, dashboard.host, dashboard.url) for name in names)
    return [endpoint for endpoint in found if endpoint is not None]


def delete(name: str, dashboard: Dashboard, timeout: float = 60.0) -> bool:
    """Take an endpoint down; with the last one Serve itself, which frees the port. Waits until it is gone.

    Returns whether anything is left on Serve.
    """
    serving = dashboard.serving()
    others = set(applications.present(serving)) - {name}
    place = applications.listening(serving)
    if others and place:
        kept = {key: config for key, config in applications.configured(serving).items() if key != name}
        dashboard.apply(applications.configuration(*place, kept))
    else:
        dashboard.shut_serve_down()
    deadline = time.monotonic() + timeout
    while name in dashboard.serving().get("applications", {}):
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{name}: still there after {timeout:g} s; Ray's dashboard says why: {dashboard.url}"
            )
        time.sleep(_POLL_SECONDS)
    return bool(others)


def _make_way(service: Service, dashboard: Dashboard, say: Say) -> dict[str, Any]:
    """See that Serve listens, or can listen, where the service wants to be."""
    serving = dashboard.serving()
    moves = applications.must_move(service, serving)
    place = applications.listening(serving)
    host = applications.host_of(service)
    if dashboard.is_local and (place is None or place[1] != service.port):
        _check_port(host, service.port)
    if moves:
        say(f"moving Serve to port {service.port} on {host}")
        dashboard.shut_serve_down()
        serving = dashboard.serving()
    return serving


def _check_port(host: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"port: {port} on {host} cannot be had ({error.strerror}); end the program that uses it, or take "
                f"another: `port:` in the spec, or --set port={port + 1}"
            ) from None


def _has_room(service: Service, dashboard: Dashboard, serving: Mapping[str, Any]) -> bool:
    """Whether new replicas fit beside the old ones; a cluster elsewhere may grow until they do."""
    if not dashboard.is_local:
        return True
    left = applications.free(dashboard.resources(), serving, without=service.name)
    running = len(applications.states(serving.get("applications", {}).get(service.name, {})))
    return applications.has_room(service, left, running)


def _wait(name: str, dashboard: Dashboard, say: Say, deadline: float) -> Endpoint:
    said = ""
    while True:
        serving = dashboard.serving()
        found = serving["applications"].get(name, {})
        status, message = found.get("status"), applications.message(found)
        if status == "RUNNING":
            endpoint = applications.endpoint(name, serving, dashboard.host, dashboard.url)
            assert endpoint is not None
            return endpoint
        if status in applications.FAILED:
            raise ResourceError(f"{name} does not come up: {applications.reason(message)}")
        if _NO_ROOM in message and dashboard.is_local:
            raise ResourceError(
                f"{name}: this cluster has no room for its replicas: other work holds its CPUs or GPUs"
            )
        progress = applications.progress(found)
        if progress != said:
            say(f"{name}: {progress}")
            said = progress
        if time.monotonic() > deadline:
            raise ResourceError(f"{name} is not up in time: {progress}; {applications.reason(message)}")
        time.sleep(_POLL_SECONDS)


def _check_answers(endpoint: Endpoint, dashboard: Dashboard) -> None:
    """See that requests get through, where the endpoint's port is sure to be reachable from here."""
    deadline = time.monotonic() + 30
    while dashboard.is_local and not _is_ready(endpoint):
        if time.monotonic() > deadline:
            raise NotReachable(
                f"{endpoint.name} runs, but {endpoint.url} does not answer; Ray's log says why"
            )
        time.sleep(_POLL_SECONDS)


def _is_ready(endpoint: Endpoint) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{endpoint.url}/v2/health/ready", trust_env=False, timeout=5).is_success
    return False


def _settle(name: str, dashboard: Dashboard, timeout: float = 60.0) -> None:
    """Wait until an application is either gone or as it was before; the first error is what counts."""
    deadline = time.monotonic() + timeout
    with suppress(RayfuseError):
        while time.monotonic() < deadline:
            found = dashboard.serving().get("applications", {}).get(name)
            if found is None or found["status"] == "RUNNING":
                return
            time.sleep(_POLL_SECONDS)

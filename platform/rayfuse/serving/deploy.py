"""Deploy, list and delete endpoints on a Ray cluster through its dashboard."""

import logging
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx
import psutil

from rayfuse.errors import RayfuseError, ResourceError, UnavailableError
from rayfuse.ray_http import FAILED_SERVE_STATUSES
from rayfuse.registry.download import ModelSource
from rayfuse.serving import serve_config
from rayfuse.serving.dashboard import Dashboard
from rayfuse.serving.serve_config import EndpointStatus
from rayfuse.spec.service import Service

_POLL_SECONDS = 0.5

_log = logging.getLogger(__name__)


def deploy(
    service: Service,
    source: ModelSource,
    dashboard: Dashboard,
    timeout: float = 600.0,
) -> EndpointStatus:
    """Deploy the model at `source`, or update the endpoint of the same name, and wait until it is ready.

    Raises ResourceError with the replica's own reason where it does not start. Whatever fails, the previous deployment
    remains or is restored, also where Serve was restarted to listen on another address.
    """
    before = dashboard.serve_details()
    restart = serve_config.must_restart_serve(service, before)
    if dashboard.is_local:
        _check_address(service, before)
    application = serve_config.build_application(service, source, _can_surge(service, dashboard, before))
    address = (None if restart else serve_config.listen_address(before)) or _wanted_address(service)
    applications = {**serve_config.deployed_app_configs(before), service.name: application}
    try:
        if restart:
            _log.info("restarting Serve on %s:%d", *address)
            dashboard.shutdown_serve()
        dashboard.apply(serve_config.build_serve_config(*address, applications))
        endpoint = _wait_until_running(service.name, dashboard, time.monotonic() + timeout)
        _check_reachable(endpoint, dashboard)
    except BaseException as error:
        _restore(before, restart, dashboard)
        if isinstance(error, RayfuseError):
            _wait_until_settled(service.name, dashboard)
        raise
    return endpoint


def _restore(before: Mapping[str, Any], restarted: bool, dashboard: Dashboard) -> None:
    """Restore the previous deployment; a failure is logged in favor of the error that led here."""
    running = serve_config.active_applications(before)
    try:
        if restarted or not running:
            dashboard.shutdown_serve()
        address = serve_config.listen_address(before)
        if running and address:
            _log.info("restoring the previous deployment")
            configs = serve_config.deployed_app_configs(before)
            dashboard.apply(serve_config.build_serve_config(*address, configs))
    except RayfuseError as error:
        _log.error("the previous deployment is not restored: %s", error)


def list_endpoints(dashboard: Dashboard) -> list[EndpointStatus]:
    """Return the endpoints of Rayfuse on the cluster, sorted by name."""
    details = dashboard.serve_details()
    names = sorted(details.get("applications", {}))
    found = (serve_config.endpoint_status(name, details, dashboard.host, dashboard.url) for name in names)
    return [endpoint for endpoint in found if endpoint is not None]


def delete(name: str, dashboard: Dashboard, timeout: float = 60.0) -> bool:
    """Delete an endpoint and wait until it is gone. The last one shuts Serve down, which frees the port.

    Returns whether other applications remain. Raises ResourceError where it is still there after `timeout` seconds.
    """
    details = dashboard.serve_details()
    others = set(serve_config.active_applications(details)) - {name}
    address = serve_config.listen_address(details)
    if others and address:
        configs = serve_config.deployed_app_configs(details)
        remaining = {key: config for key, config in configs.items() if key != name}
        dashboard.apply(serve_config.build_serve_config(*address, remaining))
    else:
        dashboard.shutdown_serve()
    deadline = time.monotonic() + timeout
    while name in dashboard.serve_details().get("applications", {}):
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{name}: not deleted within {timeout:g} s; see Ray's dashboard: {dashboard.url}"
            )
        time.sleep(_POLL_SECONDS)
    return bool(others)


def _wanted_address(service: Service) -> tuple[str, int]:
    return serve_config.listen_host(service), service.port


def check_port(service: Service) -> None:
    """Raise ResourceError where a port of this machine that a service needs is in use by another program."""
    _check_bindable(serve_config.listen_host(service), service.port)


def _check_address(service: Service, details: Mapping[str, Any]) -> None:
    """Check the port of a service where Serve does not listen on it yet."""
    address = serve_config.listen_address(details)
    if address is None or address[1] != service.port:
        check_port(service)
    elif address[0] != serve_config.ALL_INTERFACES and service.auth.keys:
        for host in _addresses_of_this_machine() - {address[0]}:
            _check_bindable(host, service.port)


def _addresses_of_this_machine() -> set[str]:
    """Return the IPv4 addresses of all interfaces that are not loopback."""
    found = (one for interface in psutil.net_if_addrs().values() for one in interface)
    return {one.address for one in found if one.family == socket.AF_INET and one.address[:4] != "127."}


def _check_bindable(host: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"port: {port} cannot be bound on {host} ({error.strerror}); stop the program that uses it, or choose another "
                f"`port`, as with --set port={port + 1}"
            ) from None


def _can_surge(service: Service, dashboard: Dashboard, details: Mapping[str, Any]) -> bool:
    """Return whether new replicas fit next to the old ones; a remote cluster may scale up until they do."""
    if not dashboard.is_local:
        return True
    available = serve_config.available_resources(dashboard.total_resources(), details, exclude=service.name)
    running = len(serve_config.replica_states(details.get("applications", {}).get(service.name, {})))
    return serve_config.can_surge(service, available, running)


def _wait_until_running(name: str, dashboard: Dashboard, deadline: float) -> EndpointStatus:
    previous = ""
    while True:
        details = dashboard.serve_details()
        application = details["applications"].get(name, {})
        status, reason = application.get("status"), serve_config.failure_reason(application)
        if status == "RUNNING":
            endpoint = serve_config.endpoint_status(name, details, dashboard.host, dashboard.url)
            assert endpoint is not None
            return endpoint
        if status in FAILED_SERVE_STATUSES:
            raise ResourceError(f"{name}: deployment failed: {reason}")
        if dashboard.is_local and serve_config.is_unschedulable(application):
            raise ResourceError(
                f"{name}: not enough free CPUs or GPUs for its replicas; lower replicas.num_cpus or replicas.num_gpus, "
                "or stop other work on this cluster"
            )
        progress = serve_config.deployment_progress(application)
        if progress != previous:
            _log.info("%s: %s", name, progress)
            previous = progress
        if time.monotonic() > deadline:
            raise ResourceError(f"{name}: not ready in time: {progress}; {reason}")
        time.sleep(_POLL_SECONDS)


def _check_reachable(endpoint: EndpointStatus, dashboard: Dashboard) -> None:
    """Wait until a local endpoint is ready; the port of a remote one may not be reachable from here."""
    deadline = time.monotonic() + 30
    while dashboard.is_local and not _is_ready(endpoint):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{endpoint.name} is running, but {endpoint.url} is unreachable; see Ray's log"
            )
        time.sleep(_POLL_SECONDS)


def _is_ready(endpoint: EndpointStatus) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{endpoint.url}/v2/health/ready", trust_env=False, timeout=5).is_success
    return False


def _wait_until_settled(name: str, dashboard: Dashboard, timeout: float = 60.0) -> None:
    """Wait until a failed application is deleted or restored; errors are suppressed in favor of the first one."""
    deadline = time.monotonic() + timeout
    with suppress(RayfuseError):
        while time.monotonic() < deadline:
            application = dashboard.serve_details().get("applications", {}).get(name)
            if application is None or application["status"] == "RUNNING":
                return
            time.sleep(_POLL_SECONDS)

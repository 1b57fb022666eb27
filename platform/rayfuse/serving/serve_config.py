"""Build Ray Serve's configuration and interpret its status; pure functions over JSON.

All that is matched in Serve's statuses and messages is here, and FAILED_SERVE_STATUSES in `rayfuse.ray_http`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayfuse import errors
from rayfuse.errors import ResourceError
from rayfuse.ray_http import FAILED_SERVE_STATUSES
from rayfuse.registry.download import ModelSource
from rayfuse.serving.settings import Settings
from rayfuse.spec.service import Replicas, Service

BUILD_IMPORT_PATH, FROM_SPEC_IMPORT_PATH = (
    "rayfuse.serving.endpoint:build",
    "rayfuse.serving.endpoint:from_spec",
)
ALL_INTERFACES, LOOPBACK = "0.0.0.0", "127.0.0.1"  # noqa: S104 - with API keys only

_DEFAULT_PORT = 8000
"""Serve's default; its default host is LOOPBACK."""
_DEPLOYMENT = "Endpoint"
_REQUEST_HEADROOM = 32
"""Requests beyond the limits that still reach a replica: health checks, docs, and those that it rejects itself.

Serve's own 503 has a plain-text body and also rejects bursts that a replica could queue, so it must only come where
replicas are missing.
"""
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)): (.*)$")
_UNSCHEDULABLE_MESSAGE = "to be scheduled"
"""Part of the message of a deployment whose replicas have been pending for 30 s (SLOW_STARTUP_WARNING_S)."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class EndpointStatus:
    """Status of a deployed endpoint."""

    name: str
    """Name of the service."""
    status: str
    """Serve's application status: RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY or DELETING."""
    url: str
    """URL of its route."""
    model: dict[str, Any]
    """`name` and `version` of the model; both None until they are known."""
    replicas: int
    """Running replicas."""
    num_api_keys: int
    """Accepted API keys; with 0 it accepts requests from loopback only."""
    message: str
    """Reason of a failed deployment; otherwise empty."""
    dashboard: str
    """URL of the Ray dashboard."""

    @property
    def docs_url(self) -> str:
        """URL of the Swagger UI."""
        return f"{self.url}/docs"

    @property
    def predict_url(self) -> str:
        """URL to POST predictions to."""
        return f"{self.url}/predict"


def build_application(service: Service, source: ModelSource, surge: bool = True) -> dict[str, Any]:
    """Build the application of a service for Serve's configuration (ServeApplicationSchema).

    A change of `args` or `ray_actor_options` starts new replicas; any other change reconfigures the running ones.
    """
    return {
        "name": service.name,
        "route_prefix": service.route_prefix,
        "import_path": BUILD_IMPORT_PATH,
        "args": application_args(service, source),
        "deployments": [{"name": _DEPLOYMENT, **deployment_options(service, source, surge)}],
    }


def application_args(service: Service, source: ModelSource) -> dict[str, Any]:
    """Return the arguments of an application's builder (EndpointArgs)."""
    threads = max(1, int(service.replicas.num_cpus))
    return {
        "model": source.model,
        "tracking_uri": source.tracking_uri,
        "num_threads": threads,
        "generation": service.generation.model_dump(),
    }


def deployment_options(service: Service, source: ModelSource, surge: bool = True) -> dict[str, Any]:
    """Return Serve's options of a deployment; with `surge` new replicas start before the old ones stop."""
    settings = Settings.from_service(service, source.name, source.version)
    replicas = service.replicas
    more_seqs = max(0, service.generation.max_num_seqs - settings.max_batch_size)
    ongoing = settings.max_in_flight + more_seqs + _REQUEST_HEADROOM
    return {
        "user_config": settings.dump(),
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": settings.request_timeout + 5,
        "max_surge_percent": 100 if surge else 0,
        **_scaling_options(replicas),
    }


def _scaling_options(replicas: Replicas) -> dict[str, Any]:
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    limits = {"min_replicas": replicas.min, "max_replicas": replicas.max}
    return {"autoscaling_config": {**limits, "target_ongoing_requests": replicas.target_ongoing_requests}}


def build_serve_config(host: str, port: int, applications: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Build Serve's configuration (ServeDeploySchema) of applications by name."""
    return {"http_options": {"host": host, "port": port}, "applications": list(applications.values())}


def listen_host(service: Service) -> str:
    """Return the host that a service listens on: loopback unless it has API keys."""
    return ALL_INTERFACES if service.auth.keys else LOOPBACK


def active_applications(details: Json) -> dict[str, Any]:
    """Return the applications that are not being deleted, by name."""
    applications = details.get("applications", {})
    return {name: found for name, found in applications.items() if found["status"] != "DELETING"}


def deployed_app_configs(details: Json) -> dict[str, dict[str, Any]]:
    """Return the configuration of each application that was deployed by configuration, by name."""
    return {
        name: found["deployed_app_config"]
        for name, found in active_applications(details).items()
        if found.get("deployed_app_config")
    }


def listen_address(details: Json) -> tuple[str, int] | None:
    """Return host and port of Serve; None where it is not running."""
    return _http_address(details) if details.get("proxies") else None


def _http_address(details: Json) -> tuple[str, int]:
    """Return host and port; Serve's details lack those that whoever started it did not set."""
    options = details.get("http_options") or {}
    return options.get("host", LOOPBACK), options.get("port", _DEFAULT_PORT)


def must_restart_serve(service: Service, details: Json) -> bool:
    """Return whether Serve must restart to listen on the address of this service.

    Serve has one address for a whole cluster, which it cannot change while it is running. Raises ResourceError where
    another application uses a different address, or the same route.
    """
    others = {name: found for name, found in active_applications(details).items() if name != service.name}
    for name, found in others.items():
        if found.get("route_prefix") == service.route_prefix:
            raise ResourceError(f"route: {service.route_prefix} is in use by {name}; choose another `route`")
    address = listen_address(details)
    if address is None or _can_share_address(service, *address):
        return False
    if others:
        raise ResourceError(_conflict_message(service, *address, ", ".join(others)))
    return True


def _can_share_address(service: Service, host: str, port: int) -> bool:
    # An endpoint without keys rejects remote clients itself, so it can share any host.
    return port == service.port and (not service.auth.keys or host not in (LOOPBACK, "localhost", "::1"))


def _conflict_message(service: Service, host: str, port: int, others: str) -> str:
    if port != service.port:
        return (
            f"port: {service.port} differs from port {port}, on which this cluster serves {others}; a cluster has one "
            f"port for all endpoints: use --set port={port}"
        )
    return (
        f"auth.keys: {service.name} has API keys and must listen on all interfaces, but this cluster serves {others} "
        f"on {host} only; take them down first: rayfuse serve down NAME"
    )


def available_resources(total: Json, details: Json, exclude: str) -> dict[str, float]:
    """Return the CPUs and GPUs of a cluster that are not used by applications other than `exclude`."""
    left = {name: float(total.get(name, 0)) for name in ("CPU", "GPU")}
    for name, found in active_applications(details).items():
        if name != exclude:
            for deployment in found.get("deployments", {}).values():
                for resource in left:
                    needed = (deployment.get("required_resources") or {}).get(resource, 0)
                    left[resource] -= needed * deployment.get("target_num_replicas", 0)
    return left


def can_surge(service: Service, available: Mapping[str, float], running: int) -> bool:
    """Return whether one more replica than `running` fits; raise ResourceError where `replicas.min` do not."""
    replicas = service.replicas
    for resource, each in (("CPU", replicas.num_cpus), ("GPU", replicas.num_gpus)):
        if each * replicas.min > available[resource]:
            raise ResourceError(
                f"replicas: {replicas.min} × {each:g} {resource}s exceed the {available[resource]:g} that are free on this "
                f"cluster; lower replicas.min or replicas.num_{resource.lower()}s, or take another endpoint down"
            )
    return all(
        each * (max(running, replicas.min) + 1) <= available[resource]
        for resource, each in (("CPU", replicas.num_cpus), ("GPU", replicas.num_gpus))
    )


def endpoint_status(name: str, details: Json, host: str, dashboard: str) -> EndpointStatus | None:
    """Return the status of an application; None where it is not an endpoint of Rayfuse.

    `host` is the host of the cluster's head, `dashboard` the URL of its dashboard.
    """
    found = details["applications"][name]
    config = found.get("deployed_app_config") or {}
    if config.get("import_path") not in (BUILD_IMPORT_PATH, FROM_SPEC_IMPORT_PATH):
        return None
    listening, port = _http_address(details)
    reachable = host if listening in (ALL_INTERFACES, "::") else listening
    settings = _settings(found)
    return EndpointStatus(
        name=name,
        status=found["status"],
        url=f"http://{reachable}:{port}{config.get('route_prefix', '/')}",
        model={"name": settings.model, "version": settings.version},
        replicas=replica_states(found).count("RUNNING"),
        num_api_keys=len(settings.keys),
        message=failure_reason(found) if found["status"] in FAILED_SERVE_STATUSES else "",
        dashboard=dashboard,
    )


def replica_states(app_details: Json) -> list[str]:
    """Return the state of each replica of an endpoint."""
    return [replica["state"] for replica in _deployment(app_details).get("replicas", [])]


def _settings(app_details: Json) -> Settings:
    """Return the replicas' settings; the defaults for an application that Serve has not built yet."""
    config = _deployment(app_details).get("deployment_config", {}).get("user_config")
    return Settings.load(config) if config else Settings()


def _deployment(app_details: Json) -> Json:
    deployment: Json = app_details.get("deployments", {}).get(_DEPLOYMENT, {})
    return deployment


def deployment_progress(app_details: Json) -> str:
    """Summarize the states of an endpoint's replicas, such as "2 starting replicas"."""
    states = replica_states(app_details)
    if not states:
        return "building the application"
    return (
        ", ".join(f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(states)) + " replicas"
    )


def is_unschedulable(app_details: Json) -> bool:
    """Return whether Serve reports that replicas wait for resources."""
    return any(_UNSCHEDULABLE_MESSAGE in message for message in _messages(app_details))


def failure_reason(app_details: Json) -> str:
    """Return the exception at the end of a traceback in Serve's messages, else their first line."""
    lines = [line.strip() for line in "\n".join(_messages(app_details)).splitlines() if line.strip()]
    for line in reversed(lines):
        match = _EXCEPTION.match(line)
        if match:
            return match[2] if hasattr(errors, match[1]) else f"{match[1]}: {match[2]}"
    return lines[0] if lines else "Ray Serve gives no reason"


def _messages(app_details: Json) -> list[str]:
    """Return the messages of an application and its deployments."""
    details = [app_details, *app_details.get("deployments", {}).values()]
    return [message for found in details if (message := found.get("message"))]

"""What Ray Serve's configuration and status say about our endpoints. Pure functions over their JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayfuse.errors import ResourceError
from rayfuse.registry.fetching import Source
from rayfuse.serve.settings import Settings
from rayfuse.spec.service import Replicas, Service

BUILD, FROM_SPEC = "rayfuse.serve.endpoint:build", "rayfuse.serve.endpoint:from_spec"
ALL_INTERFACES, LOOPBACK = "0.0.0.0", "127.0.0.1"
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")

_DEPLOYMENT = "Endpoint"
_SPARE_REQUESTS = 32
"""Requests beyond the limits that still reach a replica: health, docs, and those that it refuses itself.

Serve's own refusal has a body of plain text, and also hits a burst that a replica would have had room for; so it
only comes where replicas are missing.
"""
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|BadInput|MissingInput|NotReachable)): (.*)$")
_OURS = (
    "RayfuseError",
    "SpecError",
    "DataError",
    "BadInput",
    "MissingInput",
    "ResourceError",
    "NotReachable",
)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """A service as a cluster has it."""

    name: str
    status: str
    """RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY or DELETING."""
    url: str
    model: dict[str, Any]
    """`name` and `version`; None both while it is not known."""
    replicas: int
    """How many answer now."""
    keys: int
    """How many API keys it takes; with none it answers to its own machine alone."""
    message: str
    """Why it does not run."""
    dashboard: str

    @property
    def docs(self) -> str:
        return f"{self.url}/docs"

    @property
    def predict(self) -> str:
        return f"{self.url}/predict"


def application(service: Service, source: Source, surge: bool = True) -> dict[str, Any]:
    """A service as an application of Serve's configuration.

    A change of `args` or `ray_actor_options` starts new replicas; all else changes the running ones.
    """
    return {
        "name": service.name,
        "route_prefix": service.prefix,
        "import_path": BUILD,
        "args": arguments(service, source),
        "deployments": [{"name": _DEPLOYMENT, **options(service, source, surge)}],
    }


def arguments(service: Service, source: Source) -> dict[str, Any]:
    """What a replica must know to load its model."""
    threads = max(1, int(service.replicas.cpus))
    return {"model": source.model, "tracking": source.tracking, "threads": threads}


def options(service: Service, source: Source, surge: bool = True) -> dict[str, Any]:
    """How Serve runs the deployment of a service; with `surge` new replicas start before the old ones stop."""
    settings = Settings.of(service, source.name, source.version)
    replicas = service.replicas
    return {
        "user_config": settings.dump(),
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        "max_ongoing_requests": settings.most + _SPARE_REQUESTS,
        "max_queued_requests": settings.most + _SPARE_REQUESTS,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": settings.timeout + 5,
        "max_surge_percent": 100 if surge else 0,
        **_scale(replicas),
    }


def _scale(replicas: Replicas) -> dict[str, Any]:
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    limits = {"min_replicas": replicas.min, "max_replicas": replicas.max}
    return {"autoscaling_config": {**limits, "target_ongoing_requests": replicas.target_ongoing}}


def configuration(host: str, port: int, applications: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """All that Serve is to run."""
    return {"http_options": {"host": host, "port": port}, "applications": list(applications.values())}


def host_of(service: Service) -> str:
    """Where a service must listen: without keys on loopback only."""
    return ALL_INTERFACES if service.auth.keys else LOOPBACK


def present(serving: Json) -> dict[str, Any]:
    """The applications that are there to stay, by name, whoever deployed them."""
    applications = serving.get("applications", {})
    return {name: found for name, found in applications.items() if found["status"] != "DELETING"}


def configured(serving: Json) -> dict[str, dict[str, Any]]:
    """The configuration of every application that came through this API, by name."""
    return {
        name: found["deployed_app_config"]
        for name, found in present(serving).items()
        if found.get("deployed_app_config")
    }


def listening(serving: Json) -> tuple[str, int] | None:
    """Host and port of Serve; None where it does not run."""
    options = serving.get("http_options")
    return (options["host"], options["port"]) if options and serving.get("proxies") else None


def must_move(service: Service, serving: Json) -> bool:
    """Whether Serve listens where this service cannot be, and nobody else needs it there.

    Serve has one port for a whole cluster and keeps it while it runs. Raises ResourceError where another
    endpoint is in the way.
    """
    others = {name: found for name, found in present(serving).items() if name != service.name}
    for name, found in others.items():
        if found.get("route_prefix") == service.prefix:
            raise ResourceError(f"route: {service.prefix} is the route of {name}; write another `route:`")
    place = listening(serving)
    if place is None or _fits(service, *place):
        return False
    if others:
        raise ResourceError(_explain_conflict(service, *place, ", ".join(others)))
    return True


def _fits(service: Service, host: str, port: int) -> bool:
    """An endpoint without keys refuses callers from elsewhere itself, so for it any host will do."""
    return port == service.port and (not service.auth.keys or host not in (LOOPBACK, "localhost", "::1"))


def _explain_conflict(service: Service, host: str, port: int, others: str) -> str:
    if port != service.port:
        return (
            f"port: {service.port}, but this cluster serves {others} on {port}, and has one port for all; "
            f"write port: {port}, or --set port={port}"
        )
    return (
        f"auth.keys: {service.name} has keys and so listens on all interfaces, but this cluster listens on "
        f"{host} for {others}; take that down first: rayfuse serve down NAME"
    )


def free(total: Json, serving: Json, without: str) -> dict[str, float]:
    """CPUs and GPUs that endpoints other than `without` leave of the `total` of a cluster."""
    left = {name: float(total.get(name, 0)) for name in ("CPU", "GPU")}
    for name, found in present(serving).items():
        if name != without:
            for deployment in found.get("deployments", {}).values():
                for resource in left:
                    needed = (deployment.get("required_resources") or {}).get(resource, 0)
                    left[resource] -= needed * deployment.get("target_num_replicas", 0)
    return left


def has_room(service: Service, left: Mapping[str, float], running: int) -> bool:
    """Whether one replica more than the `running` ones fits. Raises ResourceError where even `min` do not."""
    replicas = service.replicas
    for resource, each in (("CPU", replicas.cpus), ("GPU", replicas.gpus)):
        if each * replicas.min > left[resource]:
            raise ResourceError(
                f"replicas: {replicas.min} × {each:g} {resource}s, but this cluster has {left[resource]:g} to "
                f"give; lower replicas.min or replicas.{resource.lower()}s, or take another endpoint down"
            )
    return all(
        each * (max(running, replicas.min) + 1) <= left[resource]
        for resource, each in (("CPU", replicas.cpus), ("GPU", replicas.gpus))
    )


def endpoint(name: str, serving: Json, host: str, dashboard: str) -> Endpoint | None:
    """An application as the service it is; None where it is not one of ours. `host` is the cluster's."""
    found = serving["applications"][name]
    config = found.get("deployed_app_config") or {}
    if config.get("import_path") not in (BUILD, FROM_SPEC):
        return None
    http = serving["http_options"]
    reachable = host if http["host"] in (ALL_INTERFACES, "::") else http["host"]
    settings = _settings(found)
    return Endpoint(
        name=name,
        status=found["status"],
        url=f"http://{reachable}:{http['port']}{config.get('route_prefix', '/')}",
        model={"name": settings.model, "version": settings.version},
        replicas=states(found).count("RUNNING"),
        keys=len(settings.keys),
        message=reason(message(found)) if found["status"] in FAILED else "",
        dashboard=dashboard,
    )


def states(found: Json) -> list[str]:
    """The state of every replica of one of our applications."""
    return [replica["state"] for replica in _deployment(found).get("replicas", [])]


def _settings(found: Json) -> Settings:
    """As its replicas have them; the defaults for an application that Serve has not built yet."""
    config = _deployment(found).get("deployment_config", {}).get("user_config")
    return Settings.load(config) if config else Settings()


def _deployment(found: Json) -> Json:
    deployment: Json = found.get("deployments", {}).get(_DEPLOYMENT, {})
    return deployment


def progress(found: Json) -> str:
    """A few words on how far an application has come."""
    seen = states(found)
    if not seen:
        return "preparing the application"
    return ", ".join(f"{seen.count(state)} {state.lower()}" for state in dict.fromkeys(seen)) + " replicas"


def message(found: Json) -> str:
    """Whatever Serve says about an application and its deployments."""
    messages = [found.get("message", "")]
    messages += [deployment.get("message", "") for deployment in found.get("deployments", {}).values()]
    return "\n".join(message for message in messages if message)


def reason(message: str) -> str:
    """The exception at the end of a traceback that Serve reports, else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        match = _EXCEPTION.match(line)
        if match:
            return match[2] if match[1] in _OURS else f"{match[1]}: {match[2]}"
    return lines[0] if lines else "Ray gives no reason"

"""Serve models over HTTP with Ray Serve, and list and stop their endpoints.

    with rayfuse.serve("serve/damage.yaml") as endpoint:
        endpoint.predict({"note": "cracked glass"})

An endpoint runs on the Ray cluster of this process if it is connected to one that has a dashboard, else on that of
RAY_ADDRESS (`host:port`, or the URL of its dashboard), else on a local cluster. Rayfuse starts a local cluster when it
is needed; it outlives this process, and stops with its last endpoint. Other clusters are left as they were.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rayfuse.console import show_log
from rayfuse.errors import RayfuseError, SpecError

if TYPE_CHECKING:
    from rayfuse.api.models import RemoteModel
    from rayfuse.api.specs import SpecSource
    from rayfuse.serving.dashboard import Dashboard
    from rayfuse.serving.serve_config import EndpointStatus
    from rayfuse.spec.job import Job
    from rayfuse.spec.service import Service

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingCluster:
    """The Ray cluster that endpoints run on."""

    dashboard: "Dashboard"
    """Client of its dashboard."""
    started_by_rayfuse: bool = False
    """True for the local cluster that Rayfuse starts, and stops when it is idle."""

    @property
    def token_file(self) -> Path | None:
        """File with the token of the dashboard of a local cluster."""
        if not self.started_by_rayfuse:
            return None
        from rayfuse.cluster import local

        return local.state_file(local.default_state_dir())

    @property
    def is_up(self) -> bool:
        """False for a local cluster that has been stopped."""
        from rayfuse.cluster import local

        return not self.started_by_rayfuse or local.find(local.default_state_dir()) is not None

    def stop_if_idle(self) -> bool:
        """Stop the cluster if Rayfuse started it and nothing runs on it; return whether it was stopped."""
        if not self.started_by_rayfuse:
            return False
        if self.dashboard.serve_details().get("applications") or self.dashboard.active_jobs():
            return False
        from rayfuse.cluster import local

        return local.stop(local.default_state_dir())


@dataclass
class Endpoint:
    """A model that is served over HTTP; as a context manager, it stops at the end."""

    last_status: "EndpointStatus"
    """Status when it was last read: by `serve`, `list_endpoints` or `status`."""
    cluster: ServingCluster = field(repr=False)
    """The cluster that it runs on."""
    api_key: str | None = field(default=None, repr=False)
    """API key of its requests: by default the first key of the service, or RAYFUSE_API_KEY."""
    curl: str | None = field(default=None, repr=False)
    """A curl command with placeholders for values; None for a voice, and for an endpoint that `list_endpoints` found."""
    openai_curl: str | None = field(default=None, repr=False)
    """A curl command for its OpenAI routes; None if the model has none, or `list_endpoints` found the endpoint."""

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.last_status.name

    @property
    def url(self) -> str:
        """URL of its route."""
        return self.last_status.url

    @property
    def predict_url(self) -> str:
        """URL to POST predictions to."""
        return self.last_status.predict_url

    @property
    def docs_url(self) -> str:
        """URL of its Swagger UI."""
        return self.last_status.docs_url

    @property
    def openai_url(self) -> str:
        """Base URL of the OpenAI routes of a model with generation tasks, as `openai.OpenAI(base_url=…)` takes it."""
        return f"{self.url}/v1"

    @property
    def dashboard_url(self) -> str:
        """URL of the Ray dashboard."""
        return self.cluster.dashboard.url

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version` of the model."""
        return self.last_status.model

    def predict(self, values: Any) -> Any:
        """Predict over HTTP a row, a list of rows, a pandas DataFrame, or a Ray Dataset, as `Model.predict` does.

        Raises:
            InvalidInputError: The endpoint rejects an input, with the number of its row.
            UnavailableError: The endpoint is unreachable, or its API key is wrong.
        """
        return self.load_model().predict(values)

    def load_model(self) -> "RemoteModel":
        """Return a client of its current model, as `rayfuse.load_model` does with its URL."""
        from rayfuse.api.models import RemoteModel

        return RemoteModel(self.url, self.api_key)

    def status(self) -> "EndpointStatus":
        """Read and return its current status. Raises SpecError if it has been stopped."""
        found = _find_endpoints(self.cluster)
        status = next((status for status in found if status.name == self.name), None)
        if status is None:
            raise _unknown_endpoint_error(self.name, [status.name for status in found])
        self.last_status = status
        return status

    def stop(self) -> None:
        """Stop the endpoint, and a local cluster that is idle without it; nothing happens if it is gone already."""
        from rayfuse.serving.deploy import delete

        if self.cluster.is_up:
            delete(self.name, self.cluster.dashboard)
            self.cluster.stop_if_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        model = " ".join(str(part) for part in self.model.values() if part is not None) or "unknown model"
        return f"<Endpoint {self.name}: {model}, {self.last_status.status}, {self.url}, docs {self.docs_url}>"


@dataclass(frozen=True)
class StoppedEndpoint:
    """Result of `stop_endpoint`."""

    name: str | None
    """Name of the endpoint; None if no endpoint was up."""
    cluster_stopped: bool
    """True if the local cluster was idle and was stopped, too."""


def serve(
    service: "SpecSource", *, timeout: float = 600.0, verbose: bool = True, **overrides: Any
) -> Endpoint:
    """Start or update the endpoint of a service, and wait until it is ready.

    If it fails or is interrupted, the previous deployment is restored.

    Args:
        service: The path or URL of a YAML file, a Service, or a dict.
        timeout: Seconds to wait.
        verbose: Show log lines, unless the application has configured logging.
        **overrides: Values of the spec by path, as in `port=8001` or `**{"replicas.max": 4}`.

    Raises:
        SpecError: The spec is invalid, or the model, alias or version does not exist.
        ResourceError: It does not start within `timeout` seconds, with the reason; or its port is in use.
        UnavailableError: MLflow or the cluster is unreachable, or denies access.
    """
    from rayfuse.api.specs import as_spec
    from rayfuse.spec.service import Service

    with show_log(verbose):
        return _serve(as_spec(service, Service, overrides, ("timeout", "verbose")), timeout)


def _serve(spec: "Service", timeout: float) -> Endpoint:
    from rayfuse.registry.download import fetch, resolve_version
    from rayfuse.serving.deploy import deploy

    source = resolve_version(spec.model, spec.tracking_uri)
    folder = fetch(source.model, source.tracking_uri).folder
    served = _read_model(folder)
    source = replace(source, name=source.name or served.name)
    _log.info("%s", f"{spec.name}: {source.name} {source.version or ''} from {folder}".replace("  ", " "))
    cluster = _ensure_cluster(spec)
    if cluster.started_by_rayfuse:  # replicas on this machine load the folder instead of downloading again
        source = replace(source, model=str(folder))
    try:
        status = deploy(spec, source, cluster.dashboard, timeout)
    except BaseException:
        with suppress(RayfuseError):  # in favor of the first error
            cluster.stop_if_idle()
        raise
    key = spec.auth.keys[0].get_secret_value() if spec.auth.keys else os.environ.get("RAYFUSE_API_KEY")
    return Endpoint(status, cluster, key, served.curl(status), served.openai_curl(status))


@dataclass(frozen=True)
class _ServedModel:
    """Name and example commands of a model."""

    name: str
    curl: "Callable[[EndpointStatus], str | None]"
    openai_curl: "Callable[[EndpointStatus], str | None]"


def _read_model(folder: Path) -> _ServedModel:
    """Read the description of a model folder. Raises DataError if it is damaged."""
    from rayfuse.model.model_io import load_job
    from rayfuse.speech.voice_folder import is_voice, load_description

    if is_voice(folder):
        return _ServedModel(load_description(folder).name, lambda _: None, speech_curl_command)
    job = load_job(folder)[0]
    return _ServedModel(
        job.registered_model_name,
        lambda status: curl_command(status, job),
        lambda status: openai_curl_command(status, job),
    )


def list_endpoints() -> list[Endpoint]:
    """Return the endpoints that are up, sorted by name; none if there is no cluster.

    Raises UnavailableError if the cluster of RAY_ADDRESS is unreachable or denies access.
    """
    cluster = _find_cluster()
    if cluster is None:
        return []
    key = os.environ.get("RAYFUSE_API_KEY")
    return [Endpoint(status, cluster, key) for status in _find_endpoints(cluster)]


def stop_endpoint(name: str | None = None) -> StoppedEndpoint:
    """Stop the endpoint `name`, which may be a service's YAML file; it is optional if there is only one endpoint.

    A local cluster that is idle without it is stopped, too.

    Raises:
        SpecError: There is no endpoint of this name, or there are several endpoints and no name is given.
        UnavailableError: The cluster of RAY_ADDRESS is unreachable or denies access.
    """
    from rayfuse.serving.deploy import delete

    cluster = _find_cluster()
    statuses = _find_endpoints(cluster) if cluster else []
    chosen = _select_endpoint(name, [status.name for status in statuses])
    if cluster is None:
        return StoppedEndpoint(None, cluster_stopped=False)
    if chosen is not None:
        delete(chosen, cluster.dashboard)
    return StoppedEndpoint(chosen, cluster.stop_if_idle())


def curl_command(endpoint: "EndpointStatus", job: "Job") -> str:
    """Return a curl command with placeholders for values and files."""
    from rayfuse.modalities import build_modality

    parts = [build_modality(options).curl_field(name) for name, options in job.inputs.items()]
    return " ".join(["curl", *_key_option(endpoint), *parts, endpoint.predict_url])


def openai_curl_command(endpoint: "EndpointStatus", job: "Job") -> str | None:
    """Return a curl command for a dialogue with placeholders for its parts; None for a model without such routes."""
    tasks = [name for name, task in job.tasks.items() if task.streams_texts]
    if not tasks:
        return None
    types = [options.type for options in job.inputs.values()]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}
    sound = {"type": "input_audio", "input_audio": {"data": "…", "format": "wav"}}
    files = [part for kind, part in (("image", image), ("audio", sound)) if kind in types]
    content = [{"type": "text", "text": "…"}, *files] if files else "…"
    model = endpoint.model["name"]
    body = {
        "model": model if len(tasks) == 1 else f"{model}/{tasks[0]}",
        "messages": [{"role": "user", "content": content}],
    }
    data = json.dumps(body, ensure_ascii=False)
    header = '-H "Content-Type: application/json"'
    url = f"{endpoint.url}/v1/chat/completions"
    return " ".join(["curl", *_key_option(endpoint), header, f"-d '{data}'", url])


def speech_curl_command(endpoint: "EndpointStatus") -> str:
    """Return a curl command that writes a text as speech."""
    data = json.dumps(
        {"model": endpoint.model["name"], "input": "…", "response_format": "wav"}, ensure_ascii=False
    )
    header = '-H "Content-Type: application/json"'
    url = f"{endpoint.url}/v1/audio/speech"
    return " ".join(["curl", "-o speech.wav", *_key_option(endpoint), header, f"-d '{data}'", url])


def _key_option(endpoint: "EndpointStatus") -> list[str]:
    return ['-H "Authorization: Bearer $RAYFUSE_API_KEY"'] if endpoint.num_api_keys else []


def _ensure_cluster(service: "Service") -> ServingCluster:
    found = _find_cluster()
    if found is not None:
        return found
    from rayfuse.cluster import local
    from rayfuse.serving.dashboard import Dashboard
    from rayfuse.serving.deploy import check_port

    check_port(service)  # before Ray is started
    replicas = service.replicas
    wanted = math.ceil((replicas.max + 1) * replicas.num_cpus)
    _log.info("starting a local Ray cluster")
    cluster = local.start(local.default_state_dir(), num_cpus=max(os.cpu_count() or 1, wanted))
    return ServingCluster(Dashboard(cluster.dashboard_url, cluster.token), started_by_rayfuse=True)


def _find_cluster() -> ServingCluster | None:
    """Return the cluster of this process or of RAY_ADDRESS, or else the local one if it is running."""
    from rayfuse.serving.dashboard import Dashboard, connect, connect_current

    current = connect_current()
    if current is not None:
        return ServingCluster(current)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return ServingCluster(connect(address))
    from rayfuse.cluster import local

    cluster = local.find(local.default_state_dir())
    if cluster is None:
        return None
    return ServingCluster(Dashboard(cluster.dashboard_url, cluster.token), started_by_rayfuse=True)


def _find_endpoints(cluster: ServingCluster) -> "list[EndpointStatus]":
    from rayfuse.serving.deploy import list_endpoints as find

    return find(cluster.dashboard)


def _select_endpoint(name: str | None, names: Sequence[str]) -> str | None:
    """Return the name of the endpoint to stop; None if there is no endpoint and no name."""
    if name is not None and name.endswith((".yaml", ".yml")):
        from rayfuse.spec.load import load_spec
        from rayfuse.spec.service import Service

        name = load_spec(name, Service).name
    if name is None:
        if len(names) > 1:
            raise SpecError(f"several endpoints are up; pass the name of one: {', '.join(names)}")
        return names[0] if names else None
    if name not in names:
        raise _unknown_endpoint_error(name, names)
    return name


def _unknown_endpoint_error(name: str, names: Iterable[str]) -> SpecError:
    return SpecError(f"{name}: no such endpoint; up are: {', '.join(names) or 'none'}")

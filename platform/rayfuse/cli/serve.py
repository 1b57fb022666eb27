"""`rayfuse serve up|status|down`: endpoints on a Ray cluster.

RAY_ADDRESS is the address of the cluster (`host:port`, or the URL of its dashboard). Without it, Rayfuse starts a local
cluster that outlives the command, and stops it with its last endpoint.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import SpecError
from rayfuse.formatting import table as format_table

if TYPE_CHECKING:
    from rayfuse.serving.dashboard import Dashboard
    from rayfuse.serving.serve_config import EndpointStatus
    from rayfuse.spec.job import Job
    from rayfuse.spec.service import Service


@dataclass
class _Cluster:
    dashboard: "Dashboard"
    started_by_rayfuse: bool
    """True if Rayfuse started it on this machine, and stops it when it is idle."""

    @property
    def dashboard_text(self) -> str:
        """URL of Ray's dashboard, and the file with its token."""
        if not self.started_by_rayfuse:
            return f"dashboard  {self.dashboard.url}"
        from rayfuse.cluster import local

        return f"dashboard  {self.dashboard.url}  (token: {local.state_file(local.default_state_dir())})"


@click.group()
def serve() -> None:
    """Start, list and stop endpoints.

    They run on the Ray cluster of RAY_ADDRESS, or on a local one that Rayfuse starts.
    """


@serve.command()
@click.argument("spec", metavar="SERVICE")
@output.set_option
@output.json_option
def up(spec: str, overrides: dict[str, Any]) -> None:
    """Start or update the endpoint of the YAML file SERVICE; returns when it is ready."""
    from rayfuse.model.model_io import load_job
    from rayfuse.registry.download import fetch, resolve_version
    from rayfuse.serving.deploy import deploy
    from rayfuse.spec.load import load_spec
    from rayfuse.spec.service import Service

    service = load_spec(spec, Service, overrides)
    source = resolve_version(service.model, service.tracking_uri)
    folder = fetch(source.model, source.tracking_uri).folder
    job = load_job(folder)[0]
    source = replace(source, name=source.name or job.registered_model_name)
    output.echo(f"{service.name}: {source.name} {source.version or ''} from {folder}".replace("  ", " "))
    cluster = _ensure_cluster(service)
    if cluster.started_by_rayfuse:  # replicas on this machine load the folder instead of downloading again
        source = replace(source, model=str(folder))
    try:
        endpoint = deploy(service, source, cluster.dashboard)
    except BaseException:
        _stop_if_idle(cluster)
        raise
    output.print_result(_to_dict(endpoint), _summary(endpoint, job, cluster))


@serve.command()
@output.json_option
def status() -> None:
    """List the endpoints."""
    from rayfuse.serving.deploy import list_endpoints as find

    cluster = _find_cluster()
    endpoints = find(cluster.dashboard) if cluster else []
    rows = [[e.name, e.status, _model_version(e), e.replicas, e.url, e.message or "-"] for e in endpoints]
    table = format_table(["name", "status", "model", "replicas", "url", "problem"], rows)
    text = f"{table}\n\n{cluster.dashboard_text}" if cluster and endpoints else "no endpoint is up"
    output.print_result({"endpoints": [_to_dict(endpoint) for endpoint in endpoints]}, text)


@serve.command()
@click.argument("name", metavar="[NAME]", required=False)
@output.json_option
def down(name: str | None) -> None:
    """Stop the endpoint NAME, which may be a service's YAML file; optional if there is only one endpoint."""
    from rayfuse.serving.deploy import delete
    from rayfuse.serving.deploy import list_endpoints as find

    cluster = _find_cluster()
    names = [endpoint.name for endpoint in find(cluster.dashboard)] if cluster else []
    chosen = select_endpoint(name, names)
    if cluster is None or chosen is None:
        _stop_if_idle(cluster)
        output.print_result(
            {"down": None, "cluster_stopped": bool(cluster and cluster.started_by_rayfuse)},
            "no endpoint is up",
        )
        return
    delete(chosen, cluster.dashboard)
    stopped = _stop_if_idle(cluster)
    text = f"{chosen} is down" + (", and so is the local Ray cluster" if stopped else "")
    output.print_result({"down": chosen, "cluster_stopped": stopped}, text)


def _ensure_cluster(service: "Service") -> _Cluster:
    found = _find_cluster()
    if found is not None:
        return found
    from rayfuse.cluster import local
    from rayfuse.serving.dashboard import Dashboard

    replicas = service.replicas
    wanted = math.ceil((replicas.max + 1) * replicas.num_cpus)
    output.echo("starting a local Ray cluster")
    cluster = local.start(local.default_state_dir(), num_cpus=max(os.cpu_count() or 1, wanted))
    return _Cluster(Dashboard(cluster.dashboard_url, cluster.token), started_by_rayfuse=True)


def _find_cluster() -> _Cluster | None:
    """Return the cluster of RAY_ADDRESS, or else the local one if it is running."""
    from rayfuse.serving.dashboard import Dashboard, connect

    address = os.environ.get("RAY_ADDRESS")
    if address:
        return _Cluster(connect(address), started_by_rayfuse=False)
    from rayfuse.cluster import local

    cluster = local.find(local.default_state_dir())
    return (
        _Cluster(Dashboard(cluster.dashboard_url, cluster.token), started_by_rayfuse=True)
        if cluster
        else None
    )


def _stop_if_idle(cluster: _Cluster | None) -> bool:
    """Stop the cluster if Rayfuse started it and it is idle. Returns whether it was stopped."""
    if cluster is None or not cluster.started_by_rayfuse:
        return False
    if cluster.dashboard.serve_details().get("applications") or cluster.dashboard.active_jobs():
        return False
    from rayfuse.cluster import local

    return local.stop(local.default_state_dir())


def select_endpoint(name: str | None, names: list[str]) -> str | None:
    """Return the name of the endpoint to stop; None if there is no endpoint and no name.

    Raises SpecError for an unknown name, and if there are several endpoints and no name.
    """
    if name is not None and name.endswith((".yaml", ".yml")):
        from rayfuse.spec.load import load_spec
        from rayfuse.spec.service import Service

        name = load_spec(name, Service).name
    if name is None:
        if len(names) > 1:
            raise SpecError(f"several endpoints are up; pass the name of one: {', '.join(names)}")
        return names[0] if names else None
    if name not in names:
        raise SpecError(f"{name}: no such endpoint; up are: {', '.join(names) or 'none'}")
    return name


def _summary(endpoint: "EndpointStatus", job: "Job", cluster: _Cluster) -> str:
    return (
        f"{endpoint.name} is up: {_model_version(endpoint)}, {endpoint.replicas} replica(s)\n\n"
        f"endpoint   {endpoint.predict_url}\n"
        f"docs       {endpoint.docs_url}\n"
        f"{cluster.dashboard_text}\n\n"
        f"try        {curl_command(endpoint, job)}"
    )


def curl_command(endpoint: "EndpointStatus", job: "Job") -> str:
    """Return a curl command with placeholders for values and files."""
    from rayfuse.modalities import build_modality

    parts = [build_modality(options).curl_field(name) for name, options in job.inputs.items()]
    key = ['-H "Authorization: Bearer $RAYFUSE_API_KEY"'] if endpoint.num_api_keys else []
    return " ".join(["curl", *key, *parts, endpoint.predict_url])


def _model_version(endpoint: "EndpointStatus") -> str:
    known = [endpoint.model["name"], endpoint.model["version"]]
    return " ".join(str(part) for part in known if part is not None) or "-"


def _to_dict(endpoint: "EndpointStatus") -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "status": endpoint.status,
        "url": endpoint.url,
        "predict": endpoint.predict_url,
        "docs": endpoint.docs_url,
        "dashboard": endpoint.dashboard,
        "model": endpoint.model,
        "replicas": endpoint.replicas,
        "message": endpoint.message,
    }

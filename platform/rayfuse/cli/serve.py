"""`rayfuse serve up|status|down`: endpoints on a Ray cluster.

RAY_ADDRESS names the cluster (`host:port`, or the dashboard's URL). Without it, Rayfuse starts one on this machine
that stays when the command ends, and stops it when its last endpoint is taken down.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import SpecError

if TYPE_CHECKING:
    from rayfuse.serve.applications import Endpoint
    from rayfuse.serve.dashboard import Dashboard
    from rayfuse.spec.job import Job
    from rayfuse.spec.service import Service


@dataclass
class _Cluster:
    dashboard: "Dashboard"
    ours: bool
    """Started by Rayfuse on this machine, to be stopped when nothing is left on it."""

    @property
    def page(self) -> str:
        """Where Ray's web page is, and the token that it asks for."""
        if not self.ours:
            return f"dashboard  {self.dashboard.url}"
        from rayfuse.cluster import local

        return f"dashboard  {self.dashboard.url}  (its token: {local.state_file(local.default_state())})"


@click.group()
def serve() -> None:
    """Endpoints: bring up, look at, take down.

    They run on the Ray cluster of RAY_ADDRESS; without it, on one that Rayfuse starts on this machine.
    """


@serve.command()
@click.argument("spec", metavar="SERVICE")
@output.set_option
@output.json_option
def up(spec: str, overrides: tuple[str, ...]) -> None:
    """Serve the model that the YAML file SERVICE names, or update its endpoint; returns when it answers."""
    from rayfuse.model.folder import read_job
    from rayfuse.registry.fetching import fetch, pin
    from rayfuse.serve.deploy import deploy
    from rayfuse.spec.load import load_spec
    from rayfuse.spec.service import Service

    service = load_spec(spec, Service, overrides)
    source = pin(service.model, service.tracking)
    folder = fetch(source.model, source.tracking).folder
    job = read_job(folder)[0]
    source = replace(source, name=source.name or job.registered_name)
    output.say(f"{service.name}: {source.name} {source.version or ''} from {folder}".replace("  ", " "))
    cluster = _start(service)
    if cluster.ours:  # its replicas see what was fetched just now, and need not ask MLflow
        source = replace(source, model=str(folder))
    try:
        endpoint = deploy(service, source, cluster.dashboard, output.say)
    except BaseException:
        _stop_if_idle(cluster)
        raise
    output.result(_data(endpoint), _announce(endpoint, job, cluster))


@serve.command()
@output.json_option
def status() -> None:
    """List the endpoints."""
    from rayfuse.serve.deploy import status as find

    cluster = _find()
    endpoints = find(cluster.dashboard) if cluster else []
    rows = [[e.name, e.status, _version(e), e.replicas, e.url, e.message or "-"] for e in endpoints]
    table = output.table(["name", "status", "model", "replicas", "url", "problem"], rows)
    text = f"{table}\n\n{cluster.page}" if cluster and endpoints else "no endpoint is up"
    output.result({"endpoints": [_data(endpoint) for endpoint in endpoints]}, text)


@serve.command()
@click.argument("name", metavar="[NAME]", required=False)
@output.json_option
def down(name: str | None) -> None:
    """Take the endpoint NAME down; NAME may be left out where there is only one, or be a service's YAML file."""
    from rayfuse.serve.deploy import delete
    from rayfuse.serve.deploy import status as find

    cluster = _find()
    names = [endpoint.name for endpoint in find(cluster.dashboard)] if cluster else []
    chosen = _choose(name, names)
    if cluster is None or chosen is None:
        _stop_if_idle(cluster)
        output.result({"down": None, "cluster_stopped": bool(cluster and cluster.ours)}, "no endpoint is up")
        return
    delete(chosen, cluster.dashboard)
    stopped = _stop_if_idle(cluster)
    text = f"{chosen} is down" + (", and so is the local Ray cluster" if stopped else "")
    output.result({"down": chosen, "cluster_stopped": stopped}, text)


def _start(service: "Service") -> _Cluster:
    found = _find()
    if found is not None:
        return found
    from rayfuse.cluster import local
    from rayfuse.serve.dashboard import Dashboard

    replicas = service.replicas
    wanted = math.ceil((replicas.max + 1) * replicas.cpus)
    output.say("starting Ray on this machine")
    cluster = local.start(local.default_state(), cpus=max(os.cpu_count() or 1, wanted))
    return _Cluster(Dashboard(cluster.dashboard, cluster.token), ours=True)


def _find() -> _Cluster | None:
    """The cluster of RAY_ADDRESS, else the one that was started here before, if it runs."""
    from rayfuse.serve.dashboard import Dashboard, connect

    address = os.environ.get("RAY_ADDRESS")
    if address:
        return _Cluster(connect(address), ours=False)
    from rayfuse.cluster import local

    cluster = local.find(local.default_state())
    return _Cluster(Dashboard(cluster.dashboard, cluster.token), ours=True) if cluster else None


def _stop_if_idle(cluster: _Cluster | None) -> bool:
    """Stop the cluster if it is ours and nothing is left on it. Returns whether it was stopped."""
    if cluster is None or not cluster.ours:
        return False
    if cluster.dashboard.serving().get("applications") or cluster.dashboard.drivers():
        return False
    from rayfuse.cluster import local

    return local.stop(local.default_state())


def _choose(name: str | None, names: list[str]) -> str | None:
    """The endpoint that is meant; None where there is none at all and none was named."""
    if name is not None and name.endswith((".yaml", ".yml")):
        from rayfuse.spec.load import load_spec
        from rayfuse.spec.service import Service

        name = load_spec(name, Service).name
    if name is None:
        if len(names) > 1:
            raise SpecError(f"several endpoints are up; name one: {', '.join(names)}")
        return names[0] if names else None
    if name not in names:
        raise SpecError(f"{name}: no such endpoint; up are: {', '.join(names) or 'none'}")
    return name


def _announce(endpoint: "Endpoint", job: "Job", cluster: _Cluster) -> str:
    return (
        f"{endpoint.name} is up: {_version(endpoint)}, {endpoint.replicas} replica(s)\n\n"
        f"endpoint   {endpoint.predict}\n"
        f"docs       {endpoint.docs}\n"
        f"{cluster.page}\n\n"
        f"try        {_curl(endpoint, job)}"
    )


def _curl(endpoint: "Endpoint", job: "Job") -> str:
    """A request that people can paste after putting in their files."""
    files = {"image": "picture.png", "audio": "clip.wav"}
    parts = [
        f"-F {name}=@{files.get(options.type, 'file')}" if options.type in files else f"-F {name}='…'"
        for name, options in job.inputs.items()
    ]
    key = ['-H "Authorization: Bearer $RAYFUSE_API_KEY"'] if endpoint.keys else []
    return " ".join(["curl", *key, *parts, endpoint.predict])


def _version(endpoint: "Endpoint") -> str:
    known = [endpoint.model["name"], endpoint.model["version"]]
    return " ".join(str(part) for part in known if part is not None) or "-"


def _data(endpoint: "Endpoint") -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "status": endpoint.status,
        "url": endpoint.url,
        "predict": endpoint.predict,
        "docs": endpoint.docs,
        "dashboard": endpoint.dashboard,
        "model": endpoint.model,
        "replicas": endpoint.replicas,
        "message": endpoint.message,
    }

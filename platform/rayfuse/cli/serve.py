"""`rayfuse serve up|status|down`: endpoints on a Ray cluster.

RAY_ADDRESS is the address of the cluster (`host:port`, or the URL of its dashboard). Without it, Rayfuse starts a local
cluster that outlives the command, and stops it with its last endpoint.
"""

from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.formatting import table

if TYPE_CHECKING:
    from rayfuse.api.serving import Endpoint


@click.group()
def serve() -> None:
    """Start, list and stop endpoints.

    They run on the Ray cluster of RAY_ADDRESS, or on a local one that Rayfuse starts.
    """


@serve.command(short_help="Start or update an endpoint.")
@click.argument("spec", metavar="SERVICE")
@output.set_option("port=8001")
@output.json_option
def up(spec: str, overrides: dict[str, Any]) -> None:
    """Start or update the endpoint of the YAML file SERVICE; returns when it is ready."""
    from rayfuse.api.serving import serve
    from rayfuse.spec.service import Service

    endpoint = serve(Service.from_yaml(spec, **overrides))
    output.print_result(
        _to_dict(endpoint) | ({"openai": endpoint.openai_url} if endpoint.openai_curl else {}),
        _summary(endpoint),
    )


@serve.command()
@output.json_option
def status() -> None:
    """List the endpoints."""
    from rayfuse.api.serving import list_endpoints

    endpoints = list_endpoints()
    rows = [_row(endpoint) for endpoint in endpoints]
    listed = table(["name", "status", "model", "replicas", "url", "problem"], rows)
    text = f"{listed}\n\n{_dashboard_text(endpoints[0])}" if endpoints else "no endpoint is up"
    output.print_result({"endpoints": [_to_dict(endpoint) for endpoint in endpoints]}, text)


@serve.command(short_help="Stop an endpoint.")
@click.argument("name", metavar="[NAME]", required=False)
@output.json_option
def down(name: str | None) -> None:
    """Stop the endpoint NAME, which may be a service's YAML file; optional if there is only one endpoint."""
    from rayfuse.api.serving import stop_endpoint

    stopped = stop_endpoint(name)
    text = f"{stopped.name} is down" if stopped.name else "no endpoint is up"
    if stopped.name and stopped.cluster_stopped:
        text += ", and so is the local Ray cluster"
    output.print_result({"down": stopped.name, "cluster_stopped": stopped.cluster_stopped}, text)


def _summary(endpoint: "Endpoint") -> str:
    commands = "\n           ".join(filter(None, [endpoint.curl, endpoint.openai_curl]))
    return (
        f"{endpoint.name} is up: {_model_version(endpoint)}, {endpoint.last_status.replicas} replica(s)\n\n"
        + (f"endpoint   {endpoint.predict_url}\n" if endpoint.curl else "")
        + (f"openai     {endpoint.openai_url}\n" if endpoint.openai_curl else "")
        + f"docs       {endpoint.docs_url}\n"
        f"{_dashboard_text(endpoint)}\n\n"
        f"try        {commands}"
    )


def _dashboard_text(endpoint: "Endpoint") -> str:
    """Return a line with the URL of Ray's dashboard, and the file with its token."""
    token_file = endpoint.cluster.token_file
    return f"dashboard  {endpoint.dashboard_url}" + (f"  (token: {token_file})" if token_file else "")


def _row(endpoint: "Endpoint") -> list[object]:
    status = endpoint.last_status
    return [
        status.name,
        status.status,
        _model_version(endpoint),
        status.replicas,
        status.url,
        status.message or "-",
    ]


def _model_version(endpoint: "Endpoint") -> str:
    known = [endpoint.model["name"], endpoint.model["version"]]
    return " ".join(str(part) for part in known if part is not None) or "-"


def _to_dict(endpoint: "Endpoint") -> dict[str, Any]:
    status = endpoint.last_status
    return {
        "name": status.name,
        "status": status.status,
        "url": status.url,
        "predict": status.predict_url,
        "docs": status.docs_url,
        "dashboard": status.dashboard,
        "model": status.model,
        "replicas": status.replicas,
        "message": status.message,
    }

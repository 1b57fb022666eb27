"""`rayfuse jobs list|status|logs|stop`: what was submitted to Kubernetes or to a Ray cluster."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output

if TYPE_CHECKING:
    from rayfuse.cluster.jobs import JobInfo, Jobs

_HEADER = ("NAME", "KIND", "STATUS", "AGE", "DURATION", "EXIT", "MESSAGE")
_OPTIONS = (
    click.option("--address", metavar="URL", help="Dashboard of a Ray cluster: its URL, or host:port."),
    click.option("--cluster", metavar="FILE", help="Cluster spec that names the Kubernetes namespace."),
    click.option(
        "--namespace", metavar="NAME", help="Kubernetes namespace; that of the context where absent."
    ),
    click.option(
        "--context", metavar="NAME", help="Context of the kubeconfig; the current one where absent."
    ),
)


def _on_a_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say where the jobs are; the command gets the jobs there as its first argument."""

    @wraps(command)
    def run(
        address: str | None, cluster: str | None, namespace: str | None, context: str | None, **others: Any
    ) -> None:
        command(_connect(address, cluster, namespace, context), **others)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


@click.group()
def jobs() -> None:
    """What was submitted: list, status, logs, stop.

    The jobs are those on Kubernetes, as the kubeconfig says, unless --address or RAY_ADDRESS is the URL of a Ray
    dashboard; its token is in RAY_AUTH_TOKEN.
    """


@jobs.command("list")
@_on_a_cluster
@output.json_option
def list_(jobs: "Jobs") -> None:
    """List the jobs, the newest first."""
    found = jobs.list()
    output.result({"jobs": [_data(job) for job in found]}, _table(found) if found else "no jobs")


@jobs.command()
@click.argument("name")
@_on_a_cluster
@output.json_option
def status(jobs: "Jobs", name: str) -> None:
    """Show the job NAME; the exit code is 0 however the job is doing."""
    found = jobs.get(name)
    output.result(_data(found), _table([found]))


@jobs.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@_on_a_cluster
@output.json_option
def logs(jobs: "Jobs", name: str, follow: bool) -> None:
    """Print what the job NAME has printed."""
    lines = jobs.logs(name, follow)
    if output.is_json():
        output.result({"logs": "\n".join(lines)}, "")
        return
    for line in lines:
        output.say(line)


@jobs.command()
@click.argument("name")
@_on_a_cluster
@output.json_option
def stop(jobs: "Jobs", name: str) -> None:
    """Stop the job NAME; returns when it has ended."""
    found = jobs.stop(name)
    output.result(_data(found), _table([found]))


def _connect(address: str | None, cluster: str | None, namespace: str | None, context: str | None) -> "Jobs":
    given = [name for name, value in (("--address", address), ("--cluster", cluster)) if value]
    given += ["--namespace or --context"] if namespace or context else []
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other; give one of them.")
    if not given and os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://")):
        address = os.environ["RAY_ADDRESS"]
    if address:
        from rayfuse.cluster.rayjobs import RayJobs

        return RayJobs.connect(address)
    from rayfuse.cluster.kubernetes import KubernetesJobs

    if cluster:
        from rayfuse.spec.cluster import Cluster
        from rayfuse.spec.load import load_spec

        spec = load_spec(cluster, Cluster)
        namespace, context = spec.namespace, spec.context
    return KubernetesJobs.connect(namespace, context)


def _table(found: "Sequence[JobInfo]") -> str:
    return output.table(_HEADER, [_row(job, datetime.now(UTC)) for job in found])


def _row(job: "JobInfo", now: datetime) -> list[object]:
    return [
        job.name,
        job.kind or "-",
        job.status,
        short(now - job.started) if job.started else "-",
        short((job.ended or now) - job.started) if job.started else "-",
        job.exit_code,
        job.message or "-",
    ]


def short(duration: timedelta) -> str:
    """A duration in one or two units, as in 7s, 3m20s, 5h, 2d4h."""
    left = max(0, int(duration.total_seconds()))
    parts = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, seconds)
        parts.append((amount, unit))
    first = next((i for i, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    shown = [f"{amount}{unit}" for amount, unit in parts[first : first + 2] if amount]
    return "".join(shown) or "0s"


def _data(job: "JobInfo") -> dict[str, Any]:
    times = {"started": job.started, "ended": job.ended}
    return asdict(job) | {name: time and time.isoformat() for name, time in times.items()}

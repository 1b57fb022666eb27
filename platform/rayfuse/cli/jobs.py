"""`rayfuse jobs list|status|logs|stop`: jobs on Kubernetes or a Ray cluster."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.cli.submit import exit_code
from rayfuse.errors import RayfuseError
from rayfuse.formatting import table

if TYPE_CHECKING:
    from rayfuse.cluster.jobs import JobClient, JobInfo

_HEADER = ("NAME", "KIND", "STATUS", "AGE", "DURATION", "EXIT", "MESSAGE")
_OPTIONS = (
    click.option("--address", metavar="URL", help="Ray dashboard: a URL, or host:port."),
    click.option("--cluster", metavar="FILE", help="Cluster spec with the Kubernetes namespace and context."),
    click.option("--namespace", metavar="NAME", help="Kubernetes namespace.  [default: that of the context]"),
    click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: the current one]"),
)


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a cluster; the command receives its JobClient as the first argument."""

    @wraps(command)
    def run(
        address: str | None, cluster: str | None, namespace: str | None, context: str | None, **options: Any
    ) -> None:
        from rayfuse.api.submitted_jobs import connect_jobs

        client = connect_jobs(address=address, cluster=cluster, namespace=namespace, context=context)
        command(client, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


@click.group()
def jobs() -> None:
    """List, show, follow and stop submitted jobs.

    By default these are the jobs on Kubernetes, in the current context of the kubeconfig. With --address, or the URL of a
    Ray dashboard in RAY_ADDRESS, they are those of that Ray cluster; its token must be in RAY_AUTH_TOKEN.
    """


@jobs.command("list")
@_cluster_options
@output.json_option
def list_(jobs: "JobClient") -> None:
    """List jobs, the newest first."""
    found = jobs.list()
    text = jobs_table(found, datetime.now(UTC)) if found else "no jobs"
    output.print_result({"jobs": [to_dict(job) for job in found]}, text)


@jobs.command(short_help="Show the status of a job.")
@click.argument("name")
@_cluster_options
@output.json_option
def status(jobs: "JobClient", name: str) -> None:
    """Show the status of the job NAME; the exit code is 0 whatever the status."""
    found = jobs.get(name)
    output.print_result(to_dict(found), jobs_table([found], datetime.now(UTC)))


@jobs.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Follow the log until the job has ended.")
@_cluster_options
@output.json_option
@click.pass_context
def logs(context: click.Context, jobs: "JobClient", name: str, follow: bool) -> None:
    """Print the log of the job NAME; with --follow the exit code is that of the job."""
    lines = jobs.logs(name, follow, _StatusPrinter())
    try:
        if output.is_json():
            output.print_result({"logs": "\n".join(lines)}, "")
        else:
            for line in lines:
                output.echo_log(line)
    except RayfuseError as error:
        if not follow or type(error) is not RayfuseError:
            raise
        click.echo(f"error: {error}", err=True)  # without a log, the exit code is the job's, too
        if output.is_json():
            output.print_result({"logs": ""}, "")
    if follow:
        context.exit(exit_code(jobs.get(name)))


class _StatusPrinter:
    """Print a status to standard error when it has changed."""

    def __init__(self) -> None:
        self._printed = ""

    def __call__(self, info: "JobInfo") -> None:
        if info.summary != self._printed:
            click.echo(info.summary, err=True)
        self._printed = info.summary


@jobs.command()
@click.argument("name")
@_cluster_options
@output.json_option
def stop(jobs: "JobClient", name: str) -> None:
    """Stop the job NAME and wait until it has ended, at most two minutes."""
    click.echo(f"{name}: stopping", err=True)
    found = jobs.stop(name)
    output.print_result(to_dict(found), jobs_table([found], datetime.now(UTC)))


def jobs_table(jobs: "Sequence[JobInfo]", now: datetime) -> str:
    """Format a table of jobs, with ages up to `now`."""
    return table(_HEADER, [_row(job, now) for job in jobs])


def _row(job: "JobInfo", now: datetime) -> list[object]:
    return [
        job.name,
        job.kind or "-",
        job.status,
        format_duration(now - job.started) if job.started else "-",
        format_duration((job.ended or now) - job.started) if job.started else "-",
        job.exit_code,
        job.message or "-",
    ]


def format_duration(duration: timedelta) -> str:
    """Format a duration in one or two units, as in 7s, 3m20s, 5h, 2d4h."""
    left = max(0, int(duration.total_seconds()))
    parts = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, seconds)
        parts.append((amount, unit))
    first = next((i for i, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    shown = [f"{amount}{unit}" for amount, unit in parts[first : first + 2] if amount]
    return "".join(shown) or "0s"


def to_dict(job: "JobInfo") -> dict[str, Any]:
    """Return the fields of a job, with times in ISO 8601, for `--json`."""
    times = {"started": job.started, "ended": job.ended}
    return asdict(job) | {name: time and time.isoformat() for name, time in times.items()}

"""`rayfuse submit SPEC`: submit a job, sweep or service to Kubernetes, or to any Ray cluster by its Jobs API."""

from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import RayfuseError

if TYPE_CHECKING:
    from rayfuse.api.submission import Submission
    from rayfuse.api.submitted_jobs import SubmittedJob
    from rayfuse.cluster.jobs import JobInfo


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option(
    "--cluster", "cluster_file", metavar="CLUSTER", help="Cluster spec: where to run on Kubernetes."
)
@click.option("--address", metavar="URL", help="Dashboard of an existing Ray cluster: a URL, or host:port.")
@click.option(
    "--env",
    "variables",
    metavar="NAME=VALUE",
    multiple=True,
    help="With --address: environment variable of the job; not for secrets, as Ray shows it. May be repeated.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name on the cluster.  [default: the spec's name, with a random suffix for jobs and sweeps]",
)
@click.option("--render", is_flag=True, help="Print the manifests without submitting them.")
@click.option(
    "--dry-run", type=click.Choice(["server"]), help="Have the API server validate the manifests only."
)
@click.option("--wait", is_flag=True, help="Wait until the job has ended, or the service is ready.")
@click.option("--follow", is_flag=True, help="Wait, and print the job's log.")
@click.option("--timeout", metavar="SECONDS", type=float, help="Maximum time to wait; the job keeps running.")
@output.set_option("train.epochs=3")
@output.json_option
@click.pass_context
def submit(
    context: click.Context,
    spec: str,
    cluster_file: str | None,
    address: str | None,
    variables: tuple[str, ...],
    name: str | None,
    render: bool,
    dry_run: str | None,
    wait: bool,
    follow: bool,
    timeout: float | None,
    overrides: dict[str, Any],
) -> None:
    """Submit the job, sweep or service in the YAML file SPEC to a cluster.

    With --cluster it runs on Kubernetes with KubeRay, as the YAML file CLUSTER specifies; an existing service is
    updated. With --address a job or sweep runs on an existing Ray cluster, whose token must be in RAY_AUTH_TOKEN.

    The spec is validated for the cluster: its variables are resolved from `env` of CLUSTER or --env, and paths of this
    machine are rejected. With --wait or --follow the exit code is that of the job.
    """
    from rayfuse.api.submission import prepare_submission

    _check_options(cluster_file, address, variables, bool(render or dry_run))
    submission = prepare_submission(
        spec,
        cluster_file,
        address=address,
        env=_parse_env(variables),
        name=name,
        overrides=overrides,
    )
    if render:
        output.print_result({"manifests": submission.manifests}, submission.to_yaml().rstrip("\n"))
    elif dry_run:
        _dry_run(submission)
    else:
        job = submission.submit()
        context.exit(_follow(job, timeout, follow) if wait or follow else _print_next_steps(job))


def _check_options(
    cluster_file: str | None, address: str | None, variables: tuple[str, ...], manifests: bool
) -> None:
    if (cluster_file is None) == (address is None):
        raise click.UsageError("Pass exactly one of --cluster and --address.")
    if cluster_file is not None and variables:
        raise click.UsageError(f"--env requires --address; on Kubernetes use `env` of {cluster_file}.")
    if address is not None and manifests:
        raise click.UsageError("--render and --dry-run require --cluster.")


def _parse_env(given: tuple[str, ...]) -> dict[str, str]:
    variables = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--env {name}: use the form --env NAME=VALUE.")
        variables[name] = value
    return variables


def _dry_run(submission: "Submission") -> None:
    submission.dry_run()
    name = submission.name
    data = {"name": name, **submission.location.to_dict(), "kind": submission.kind, "status": None}
    output.print_result(data, f"{name}: valid for the API server; not submitted")


def _print_next_steps(job: "SubmittedJob") -> int:
    output.print_result(_to_dict(job, job.status()), job.commands("status", "logs", "stop"))
    return 0


def _follow(job: "SubmittedJob", timeout: float | None, print_log: bool) -> int:
    """Wait for a job, and return the exit code of the command."""
    info = job.wait(timeout, output.echo_log if print_log else None)
    output.print_result(_to_dict(job, info), info.summary)
    return exit_code(info)


def _to_dict(job: "SubmittedJob", info: "JobInfo") -> dict[str, Any]:
    return {
        "name": job.name,
        **job.location.to_dict(),
        "kind": job.kind,
        "status": info.status,
        "exit_code": info.exit_code,
        "message": info.message,
        "dashboard": info.dashboard_url or None,
    }


def exit_code(info: "JobInfo") -> int:
    """Return the exit code of `rayfuse submit` for a job: that of a failed entrypoint, so that 3 means a gate."""
    if info.status in ("SUCCEEDED", "RUNNING"):
        return 0
    return info.exit_code if info.exit_code and info.exit_code > 0 else RayfuseError.exit_code

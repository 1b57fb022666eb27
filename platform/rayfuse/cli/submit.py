"""`rayfuse submit SPEC`: submit a job, sweep or service to Kubernetes, or to any Ray cluster by its Jobs API."""

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import RayfuseError, RunInterruptedError, SpecError

if TYPE_CHECKING:
    from rayfuse.cluster.jobs import JobClient, JobInfo

_POLL_SECONDS = 2.0
_LOG_DRAIN_SECONDS = 20.0
"""Seconds to wait for the last lines of a log after the job has ended."""


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
@output.set_option
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
    _check_options(cluster_file, address, variables, bool(render or dry_run))
    if cluster_file is not None:
        submission = _submit_to_kubernetes(spec, overrides, cluster_file, name, render, dry_run)
    else:
        assert address is not None
        submission = _submit_to_ray(spec, overrides, address, variables, name)
    if submission is None:
        return
    if not (wait or follow):
        info = submission.jobs.get(submission.name)
        output.print_result(submission.to_dict(info), submission.next_steps("status", "logs", "stop"))
        return
    info = _wait(submission, follow and submission.kind != "service", timeout)
    output.print_result(submission.to_dict(info), _summary(info))
    context.exit(exit_code(info))


@dataclass(frozen=True)
class _Submission:
    """A submitted spec."""

    jobs: "JobClient"
    name: str
    kind: str
    location: dict[str, Any]
    """Namespace or address, for `--json`."""
    jobs_option: str
    """The location as an option of `rayfuse jobs`."""

    def next_steps(self, *commands: str) -> str:
        """Return a line for each of these subcommands of `rayfuse jobs`; a service has no logs."""
        flags = {"logs": "--follow "}
        return "\n".join(
            f"{command:<11}rayfuse jobs {command} {self.name} {flags.get(command, '')}{self.jobs_option}"
            for command in commands
            if (self.kind, command) != ("service", "logs")
        )

    def to_dict(self, info: "JobInfo") -> dict[str, Any]:
        return {
            "name": self.name,
            **self.location,
            "kind": self.kind,
            "status": info.status,
            "exit_code": info.exit_code,
            "message": info.message,
            "dashboard": info.dashboard_url or None,
        }


def _check_options(
    cluster_file: str | None, address: str | None, variables: tuple[str, ...], manifests: bool
) -> None:
    if (cluster_file is None) == (address is None):
        raise click.UsageError("Pass exactly one of --cluster and --address.")
    if cluster_file is not None and variables:
        raise click.UsageError(f"--env requires --address; on Kubernetes use `env` of {cluster_file}.")
    if address is not None and manifests:
        raise click.UsageError("--render and --dry-run require --cluster.")


def _submit_to_kubernetes(
    spec: str,
    overrides: dict[str, Any],
    cluster_file: str,
    name: str | None,
    render: bool,
    dry_run: str | None,
) -> _Submission | None:
    """Submit to Kubernetes; return None for --render and --dry-run."""
    from rayfuse.cluster import manifests
    from rayfuse.cluster.submission import TargetEnvironment, build_bundle
    from rayfuse.spec.cluster import Cluster
    from rayfuse.spec.load import load_spec

    cluster = load_spec(cluster_file, Cluster)
    bundle = build_bundle(spec, overrides, TargetEnvironment.kubernetes(cluster, cluster_file))
    rendered = manifests.render(bundle, cluster, cluster_file, name)
    if render:
        output.print_result({"manifests": rendered}, manifests.to_yaml(rendered).rstrip("\n"))
        return None

    from rayfuse.cluster.kubernetes import KubernetesJobClient

    jobs = KubernetesJobClient.connect(cluster.namespace, cluster.context)
    object_name = rendered[-1]["metadata"]["name"]
    location = {"namespace": cluster.namespace}
    if dry_run:
        jobs.dry_run(rendered)
        data = {"name": object_name, **location, "kind": bundle.kind, "status": None}
        output.print_result(data, f"{object_name}: valid for the API server; not submitted")
        return None
    jobs.submit(rendered)
    output.log(f"{object_name}: submitted to namespace {cluster.namespace}")
    return _Submission(jobs, object_name, bundle.kind, location, f"--cluster {cluster_file}")


def _submit_to_ray(
    spec: str, overrides: dict[str, Any], address: str, variables: tuple[str, ...], name: str | None
) -> _Submission:
    """Submit to a Ray cluster by its Jobs API."""
    from rayfuse.cluster.manifests import job_name
    from rayfuse.cluster.rayjobs import RayJobClient, submit
    from rayfuse.cluster.submission import COMMANDS, TargetEnvironment, build_bundle
    from rayfuse.spec.load import read_kind

    env = _parse_env(variables)
    if read_kind(spec) == "service":
        raise SpecError(
            f"{spec}: kind: a service cannot be submitted with --address; use: "
            f"RAY_ADDRESS={address} rayfuse serve up {spec}"
        )
    bundle = build_bundle(spec, overrides, TargetEnvironment.ray(env))
    entrypoint = f"rayfuse {COMMANDS[bundle.kind]} {bundle.spec_file}"
    job_id = submit(address, name or job_name(bundle), bundle.kind, bundle.files, entrypoint, env)
    output.log(f"{job_id}: submitted to {address}")
    jobs, location = RayJobClient.connect(address), {"address": address}
    return _Submission(jobs, job_id, bundle.kind, location, f"--address {address}")


def _parse_env(given: tuple[str, ...]) -> dict[str, str]:
    from rayfuse.spec.base import holds_credentials
    from rayfuse.spec.cluster import is_secret_name

    variables = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--env {name}: use the form --env NAME=VALUE.")
        if is_secret_name(name) or holds_credentials(value):
            raise SpecError(
                f"--env {name}: appears to be a secret, which Ray would expose; set it on the cluster's nodes instead"
            )
        variables[name] = value
    return variables


def _wait(submission: _Submission, follow: bool, timeout: float | None) -> "JobInfo":
    """Wait until a job has ended, or a service is ready or has failed; log each change of its status."""
    jobs, name = submission.jobs, submission.name
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    printer = threading.Thread(target=_print_log, args=(jobs, name), name="log", daemon=True)
    if follow:
        printer.start()
    previous = ""
    try:
        while not _is_done(info := jobs.get(name)):
            line = _summary(info)
            if line != previous:
                output.log(line)
            previous = line
            if time.monotonic() > deadline:
                raise RayfuseError(
                    f"{name}: {info.status} after {timeout:g} s; it keeps running\n"
                    + submission.next_steps("logs", "stop")
                )
            time.sleep(_POLL_SECONDS)
        if follow:
            printer.join(_LOG_DRAIN_SECONDS)
    except KeyboardInterrupt:
        raise RunInterruptedError(
            f"interrupted; {name} keeps running\n{submission.next_steps('logs', 'stop')}"
        ) from None
    return info


def _print_log(jobs: "JobClient", name: str) -> None:
    try:
        for line in jobs.logs(name, follow=True):
            output.echo(line)
    except RayfuseError as error:
        output.warn(str(error))


def _is_done(info: "JobInfo") -> bool:
    from rayfuse.cluster.jobs import TERMINAL_STATUSES

    return info.status in TERMINAL_STATUSES or (info.kind == "service" and info.status == "RUNNING")


def exit_code(info: "JobInfo") -> int:
    """Return the exit code of `rayfuse submit` for a job: that of a failed entrypoint, so that 3 means a gate."""
    if info.status in ("SUCCEEDED", "RUNNING"):
        return 0
    return info.exit_code if info.exit_code and info.exit_code > 0 else RayfuseError.exit_code


def _summary(info: "JobInfo") -> str:
    code = f" with exit code {info.exit_code}" if info.exit_code else ""
    return f"{info.name}: {info.status}{code}" + (f"  {info.message}" if info.message else "")

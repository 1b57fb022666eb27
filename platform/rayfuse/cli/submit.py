"""`rayfuse submit SPEC`: run a job, a sweep or a service on Kubernetes, or on any Ray cluster by its Jobs address."""

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import Interrupted, RayfuseError, SpecError

if TYPE_CHECKING:
    from rayfuse.cluster.jobs import JobInfo, Jobs

_POLL_SECONDS = 2.0
_LOG_SECONDS = 20.0
"""How long the last lines of a log may take after the job has ended."""


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option(
    "--cluster", "cluster_file", metavar="CLUSTER", help="The YAML file of a cluster on Kubernetes."
)
@click.option("--address", metavar="URL", help="Dashboard of any Ray cluster: its URL, or host:port.")
@click.option(
    "--env",
    "variables",
    metavar="NAME=VALUE",
    multiple=True,
    help="With --address: a variable that goes along, for all to see. May be given several times.",
)
@click.option(
    "--name", metavar="NAME", help="Its name on the cluster; by default the spec's, jobs with a suffix."
)
@click.option("--render", is_flag=True, help="Print the manifests and send nothing.")
@click.option(
    "--dry-run", type=click.Choice(["server"]), help="Have the API server check it and keep nothing."
)
@click.option("--wait", is_flag=True, help="Wait until the job has ended, or the service answers.")
@click.option("--follow", is_flag=True, help="Wait, and print what the job prints.")
@click.option("--timeout", metavar="SECONDS", type=float, help="Wait no longer than this; the job goes on.")
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
    overrides: tuple[str, ...],
) -> None:
    """Run the job, sweep or service in the YAML file SPEC on the cluster that the YAML file CLUSTER describes.

    The spec is checked for what it will find there: variables come from `env` of CLUSTER, and paths of this machine
    are refused. A service that is there already is updated. With --wait and --follow the exit code is the job's own.
    A Ray cluster that is not on Kubernetes takes jobs and sweeps by its --address, with its token in RAY_AUTH_TOKEN.
    """
    _check_options(cluster_file, address, variables, bool(render or dry_run))
    if cluster_file is not None:
        sent = _to_kubernetes(spec, overrides, cluster_file, name, render, dry_run)
    else:
        assert address is not None
        sent = _to_ray(spec, overrides, address, variables, name)
    if sent is None:
        return
    if not (wait or follow):
        output.result(sent.data(sent.jobs.get(sent.name)), sent.next())
        return
    info = _watch(sent, follow and sent.kind != "service", timeout)
    output.result(sent.data(info), _ended(info))
    context.exit(_exit_code(info))


@dataclass(frozen=True)
class _Sent:
    """A spec that is on its cluster."""

    jobs: "Jobs"
    name: str
    kind: str
    about: dict[str, Any]
    """Where it is, for programs."""
    where: str
    """The same as an option of `rayfuse jobs`."""

    def next(self) -> str:
        """What to do with it now."""
        status = f"status     rayfuse jobs status {self.name} {self.where}\n"
        return status + (self.how_to().split("\n")[1] if self.kind == "service" else self.how_to())

    def how_to(self) -> str:
        return (
            f"log        rayfuse jobs logs {self.name} --follow {self.where}\n"
            f"stop       rayfuse jobs stop {self.name} {self.where}"
        )

    def data(self, info: "JobInfo") -> dict[str, Any]:
        return {
            "name": self.name,
            **self.about,
            "kind": self.kind,
            "status": info.status,
            "exit_code": info.exit_code,
            "message": info.message,
            "dashboard": info.address or None,
        }


def _check_options(
    cluster_file: str | None, address: str | None, variables: tuple[str, ...], manifests: bool
) -> None:
    if (cluster_file is None) == (address is None):
        raise click.UsageError("Say where it shall run: with --cluster or with --address, and not with both.")
    if cluster_file is not None and variables:
        raise click.UsageError(f"--env goes with --address; on Kubernetes `env` of {cluster_file} says it.")
    if address is not None and manifests:
        raise click.UsageError("--render and --dry-run are about manifests; they go with --cluster.")


def _to_kubernetes(
    spec: str,
    overrides: tuple[str, ...],
    cluster_file: str,
    name: str | None,
    render: bool,
    dry_run: str | None,
) -> _Sent | None:
    """Send it; None where it was only shown or checked."""
    from rayfuse.cluster import manifests
    from rayfuse.cluster.travel import Destination, pack
    from rayfuse.spec.cluster import Cluster
    from rayfuse.spec.load import load_spec

    cluster = load_spec(cluster_file, Cluster)
    parcel = pack(spec, overrides, Destination.kubernetes(cluster, cluster_file))
    rendered = manifests.render(parcel, cluster, cluster_file, name)
    if render:
        output.result({"manifests": rendered}, manifests.to_yaml(rendered).rstrip("\n"))
        return None

    from rayfuse.cluster.kubernetes import KubernetesJobs

    jobs = KubernetesJobs.connect(cluster.namespace, cluster.context)
    chosen = rendered[-1]["metadata"]["name"]
    about = {"namespace": cluster.namespace}
    if dry_run:
        jobs.check(rendered)
        data = {"name": chosen, **about, "kind": parcel.kind, "status": None}
        output.result(data, f"{chosen}: the API server would take it; nothing was sent")
        return None
    jobs.send(rendered)
    output.say(f"{chosen}: submitted to namespace {cluster.namespace}")
    return _Sent(jobs, chosen, parcel.kind, about, f"--cluster {cluster_file}")


def _to_ray(
    spec: str, overrides: tuple[str, ...], address: str, variables: tuple[str, ...], name: str | None
) -> _Sent:
    """Send it through Ray's Jobs API."""
    from rayfuse.cluster.manifests import job_name
    from rayfuse.cluster.rayjobs import RayJobs, submit
    from rayfuse.cluster.travel import VERBS, Destination, pack
    from rayfuse.spec.load import kind_of

    env = _variables(variables)
    if kind_of(spec) == "service":
        raise SpecError(
            f"{spec}: kind: a Ray cluster takes jobs and sweeps by its --address; for a service: "
            f"RAY_ADDRESS={address} rayfuse serve up {spec}"
        )
    parcel = pack(spec, overrides, Destination.ray(env))
    entrypoint = f"rayfuse {VERBS[parcel.kind]} {parcel.file}"
    chosen = submit(address, name or job_name(parcel), parcel.kind, parcel.files, entrypoint, env)
    output.say(f"{chosen}: submitted to {address}")
    about = {"address": address}
    return _Sent(RayJobs.connect(address), chosen, parcel.kind, about, f"--address {address}")


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    from rayfuse.spec.base import holds_credentials
    from rayfuse.spec.cluster import looks_secret

    variables = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--env {name}: write --env NAME=VALUE.")
        if looks_secret(name) or holds_credentials(value):
            raise SpecError(
                f"--env {name}: looks like a secret, and Ray shows it to all; set it on the nodes instead"
            )
        variables[name] = value
    return variables


def _watch(sent: _Sent, follow: bool, timeout: float | None) -> "JobInfo":
    """The job once it has ended, or the service once it answers or has failed; a line whenever something changes."""
    jobs, name = sent.jobs, sent.name
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    printer = threading.Thread(target=_print_log, args=(jobs, name), name="log", daemon=True)
    if follow:
        printer.start()
    said = ""
    try:
        while not _is_done(info := jobs.get(name)):
            said = _say_once(f"{name}: {info.status}" + (f"  {info.message}" if info.message else ""), said)
            if time.monotonic() > deadline:
                raise RayfuseError(
                    f"{name}: still {info.status} after {timeout:g} s, and goes on\n{sent.how_to()}"
                )
            time.sleep(_POLL_SECONDS)
        if follow:
            printer.join(_LOG_SECONDS)
    except KeyboardInterrupt:
        raise Interrupted(f"{name} goes on without this command\n{sent.how_to()}") from None
    return info


def _print_log(jobs: "Jobs", name: str) -> None:
    try:
        for line in jobs.logs(name, follow=True):
            output.say(line)
    except RayfuseError as error:
        output.warn(str(error))


def _say_once(line: str, said: str) -> str:
    if line != said:
        output.say(line)
    return line


def _is_done(info: "JobInfo") -> bool:
    from rayfuse.cluster.jobs import ENDED

    return info.status in ENDED or (info.kind == "service" and info.status == "RUNNING")


def _exit_code(info: "JobInfo") -> int:
    """The entrypoint's own where it failed by itself, so that 3 still means that a gate refused."""
    if info.status in ("SUCCEEDED", "RUNNING"):
        return 0
    return info.exit_code if info.exit_code and info.exit_code > 0 else RayfuseError.exit_code


def _ended(info: "JobInfo") -> str:
    code = f" with exit code {info.exit_code}" if info.exit_code else ""
    return f"{info.name}: {info.status}{code}" + (f"  {info.message}" if info.message else "")

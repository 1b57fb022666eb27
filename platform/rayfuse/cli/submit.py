"""`rayfuse submit SPEC --cluster CLUSTER`: run a job, a sweep or a service on Kubernetes."""

import math
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import Interrupted, RayfuseError

if TYPE_CHECKING:
    from rayfuse.cluster.jobs import JobInfo
    from rayfuse.cluster.kubernetes import KubernetesJobs

_POLL_SECONDS = 2.0
_LOG_SECONDS = 20.0
"""How long the last lines of a log may take after the job has ended."""


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option("--cluster", "cluster_file", metavar="CLUSTER", required=True, help="The cluster's YAML file.")
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
    cluster_file: str,
    name: str | None,
    render: bool,
    dry_run: str | None,
    wait: bool,
    follow: bool,
    timeout: float | None,
    overrides: tuple[str, ...],
) -> None:
    """Run the job, sweep or service in the YAML file SPEC on the cluster that the YAML file CLUSTER describes.

    The spec is checked for what its pods will see: variables come from `env` of CLUSTER, and paths of this machine
    are refused. A service that is there already is updated. With --wait and --follow the exit code is the job's own.
    """
    from rayfuse.cluster import manifests
    from rayfuse.cluster.travel import pack
    from rayfuse.spec.cluster import Cluster
    from rayfuse.spec.load import load_spec

    cluster = load_spec(cluster_file, Cluster)
    parcel = pack(spec, overrides, cluster, cluster_file)
    rendered = manifests.render(parcel, cluster, cluster_file, name)
    if render:
        output.result({"manifests": rendered}, manifests.to_yaml(rendered).rstrip("\n"))
        return

    from rayfuse.cluster.kubernetes import KubernetesJobs

    jobs = KubernetesJobs.connect(cluster.namespace, cluster.context)
    chosen = rendered[-1]["metadata"]["name"]
    data = {"name": chosen, "namespace": cluster.namespace, "kind": parcel.kind}
    if dry_run:
        jobs.check(rendered)
        output.result({**data, "status": None}, f"{chosen}: the API server would take it; nothing was sent")
        return
    jobs.send(rendered)
    output.say(f"{chosen}: submitted to namespace {cluster.namespace}")
    if not (wait or follow):
        output.result(_data(data, jobs.get(chosen)), _next(chosen, parcel.kind, cluster_file))
        return
    info = _watch(jobs, chosen, follow and parcel.kind != "service", timeout, cluster_file)
    output.result(_data(data, info), _ended(info))
    context.exit(_exit_code(info))


def _watch(
    jobs: "KubernetesJobs", name: str, follow: bool, timeout: float | None, cluster_file: str
) -> "JobInfo":
    """The job once it has ended, or the service once it answers or has failed; a line whenever something changes."""
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
                    f"{name}: still {info.status} after {timeout:g} s, and goes on\n{_how_to(name, cluster_file)}"
                )
            time.sleep(_POLL_SECONDS)
        if follow:
            printer.join(_LOG_SECONDS)
    except KeyboardInterrupt:
        raise Interrupted(f"{name} goes on without this command\n{_how_to(name, cluster_file)}") from None
    return info


def _print_log(jobs: "KubernetesJobs", name: str) -> None:
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


def _next(name: str, kind: str, cluster_file: str) -> str:
    """What to do with a thing that was just submitted."""
    return f"status     rayfuse jobs status {name} --cluster {cluster_file}\n" + (
        f"stop       rayfuse jobs stop {name} --cluster {cluster_file}"
        if kind == "service"
        else _how_to(name, cluster_file)
    )


def _how_to(name: str, cluster_file: str) -> str:
    return (
        f"log        rayfuse jobs logs {name} --follow --cluster {cluster_file}\n"
        f"stop       rayfuse jobs stop {name} --cluster {cluster_file}"
    )


def _ended(info: "JobInfo") -> str:
    code = f" with exit code {info.exit_code}" if info.exit_code else ""
    return f"{info.name}: {info.status}{code}" + (f"  {info.message}" if info.message else "")


def _data(data: dict[str, Any], info: "JobInfo") -> dict[str, Any]:
    return {
        **data,
        "status": info.status,
        "exit_code": info.exit_code,
        "message": info.message,
        "dashboard": info.address or None,
    }

"""Jobs, sweeps and services on a cluster: their status, their logs, and their end.

rayfuse.get_job("damage").wait(on_log=print).status
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rayfuse.console import show_log
from rayfuse.errors import RayfuseError, RunInterruptedError, SpecError
from rayfuse.signals import signum_of

if TYPE_CHECKING:
    from rayfuse.api.specs import SpecSource
    from rayfuse.cluster.jobs import JobClient, JobInfo
    from rayfuse.spec.cluster import Cluster

_POLL_SECONDS = 2.0
_LOG_DRAIN_SECONDS = 20.0
"""Seconds to wait for the last lines of a log after the job has ended."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobLocation:
    """The cluster that a job runs on: a namespace of Kubernetes, or a Ray cluster by its address."""

    address: str | None = None
    """Dashboard of a Ray cluster: a URL, or host:port."""
    cluster_file: str | None = None
    """File of a cluster spec."""
    namespace: str | None = None
    """Namespace of Kubernetes; None: that of the context."""
    context: str | None = None
    """Context of the kubeconfig; None: the current one."""

    @property
    def options(self) -> str:
        """The location as options of `rayfuse jobs`."""
        if self.address or self.cluster_file:
            return f"--address {self.address}" if self.address else f"--cluster {self.cluster_file}"
        given = (("--namespace", self.namespace), ("--context", self.context))
        return " ".join(f"{option} {value}" for option, value in given if value)

    def to_dict(self) -> dict[str, str | None]:
        """Return the address or the namespace, for `--json`."""
        return {"address": self.address} if self.address else {"namespace": self.namespace}

    def connect(self) -> "JobClient":
        """Connect to the cluster. Raises UnavailableError if Kubernetes is not configured."""
        if self.address:
            from rayfuse.cluster.rayjobs import RayJobClient

            return RayJobClient.connect(self.address)
        from rayfuse.cluster.kubernetes import KubernetesJobClient

        return KubernetesJobClient.connect(self.namespace, self.context)


@dataclass(frozen=True)
class SubmittedJob:
    """A job, sweep or service on a cluster."""

    name: str
    """Name on the cluster."""
    kind: str
    """job, sweep or service; empty for a job that was not submitted by Rayfuse."""
    location: JobLocation
    """The cluster that it runs on."""
    client: "JobClient" = field(repr=False, compare=False)
    """Client of the cluster's jobs."""

    def status(self) -> "JobInfo":
        """Return its status, with the reason why it is pending or failed."""
        return self.client.get(self.name)

    def logs(self, follow: bool = False) -> Iterator[str]:
        """Yield the lines of its log; with `follow` until it has ended. Raises SpecError for a service."""
        return self.client.logs(self.name, follow)

    def stop(self) -> "JobInfo":
        """Stop it and wait until it has ended; a job that has ended is not changed."""
        return self.client.stop(self.name)

    def wait(
        self,
        timeout: float | None = None,
        on_log: Callable[[str], object] | None = None,
        interval: float = _POLL_SECONDS,
        verbose: bool = True,
    ) -> "JobInfo":
        """Wait until a job has ended, or a service is ready or has failed, and return its status.

        Args:
            timeout: Seconds to wait; None: until the end.
            on_log: Called with each line of a job's log, from another thread; for example `print`.
            interval: Seconds between two requests of the status.
            verbose: Show changes of the status, unless the application has configured logging.

        Raises:
            RayfuseError: It has not ended after `timeout` seconds; it keeps running.
            RunInterruptedError: Ctrl-C; it keeps running.
        """
        printer = None
        if on_log is not None and self.kind != "service":
            printer = threading.Thread(target=self._pass_log, args=(on_log,), name="log", daemon=True)
            printer.start()
        try:
            with show_log(verbose):
                info = self._wait_until_done(timeout, interval)
            if printer is not None:
                printer.join(_LOG_DRAIN_SECONDS)
        except KeyboardInterrupt as error:
            raise RunInterruptedError(
                f"interrupted; {self.name} keeps running\n{self.commands('logs', 'stop')}", signum_of(error)
            ) from None
        return info

    def commands(self, *names: str) -> str:
        """Return a line for each of these subcommands of `rayfuse jobs`; a service has no logs."""
        flags = {"logs": "--follow "}
        return "\n".join(
            f"{name:<11}rayfuse jobs {name} {self.name} {flags.get(name, '')}{self.location.options}".rstrip()
            for name in names
            if (self.kind, name) != ("service", "logs")
        )

    def _wait_until_done(self, timeout: float | None, interval: float) -> "JobInfo":
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        previous = ""
        while not _is_done(info := self.status()):
            line = info.summary
            if line != previous:
                _log.info("%s", line)
            previous = line
            if time.monotonic() > deadline:
                raise RayfuseError(
                    f"{self.name}: {info.status} after {timeout:g} s; it keeps running\n{self.commands('logs', 'stop')}"
                )
            time.sleep(interval)
        return info

    def _pass_log(self, on_log: Callable[[str], object]) -> None:
        try:
            for line in self.logs(follow=True):
                on_log(line)
        except RayfuseError as error:
            _log.warning("%s", error)


def connect_jobs(
    *,
    address: str | None = None,
    cluster: "SpecSource | None" = None,
    namespace: str | None = None,
    context: str | None = None,
) -> "JobClient":
    """Return a client of the jobs of one cluster: list, get, follow and stop them.

    By default the jobs on Kubernetes, in the current context of the kubeconfig; with RAY_ADDRESS set to the URL of a
    Ray dashboard, or with `address`, those of that Ray cluster.

    Raises:
        SpecError: More than one of address, cluster and namespace or context is given.
        UnavailableError: Kubernetes is not configured.
    """
    return _locate(address, cluster, namespace, context).connect()


def list_jobs(
    *,
    address: str | None = None,
    cluster: "SpecSource | None" = None,
    namespace: str | None = None,
    context: str | None = None,
) -> "list[JobInfo]":
    """Return the status of all jobs of one cluster, the newest first; see `connect_jobs` for the arguments."""
    return connect_jobs(address=address, cluster=cluster, namespace=namespace, context=context).list()


def get_job(
    name: str,
    *,
    address: str | None = None,
    cluster: "SpecSource | None" = None,
    namespace: str | None = None,
    context: str | None = None,
) -> SubmittedJob:
    """Return the job `name` of one cluster; see `connect_jobs` for the other arguments.

    Raises SpecError with the known names where there is no job of this name.
    """
    location = _locate(address, cluster, namespace, context)
    jobs = location.connect()
    return SubmittedJob(name, jobs.get(name).kind, location, jobs)


def load_cluster(cluster: "SpecSource") -> "tuple[Cluster, str | None]":
    """Return the cluster spec, and its file if it has one."""
    from rayfuse.api.specs import as_spec
    from rayfuse.spec.cluster import Cluster

    file = str(cluster) if isinstance(cluster, (str, Path)) else None
    return as_spec(cluster, Cluster, {}), file


def _locate(
    address: str | None, cluster: "SpecSource | None", namespace: str | None, context: str | None
) -> JobLocation:
    options = (("address", address), ("cluster", cluster), ("namespace or context", namespace or context))
    given = [name for name, value in options if value]
    if len(given) > 1:
        raise SpecError(f"{' and '.join(given)} are mutually exclusive; pass one of them")
    if not given and os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://")):
        address = os.environ["RAY_ADDRESS"]
    if cluster:
        spec, file = load_cluster(cluster)
        return JobLocation(cluster_file=file, namespace=spec.namespace, context=spec.context)
    return JobLocation(address=address, namespace=namespace, context=context)


def _is_done(info: "JobInfo") -> bool:
    from rayfuse.cluster.jobs import TERMINAL_STATUSES

    return info.status in TERMINAL_STATUSES or (info.kind == "service" and info.status == "RUNNING")

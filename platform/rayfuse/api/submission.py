"""Submit jobs, sweeps and services to Kubernetes or to any Ray cluster, and follow them.

    job = rayfuse.submit("jobs/damage.yaml", "k8s/cluster.yaml")
    job.wait(on_log=print).status

Rendering manifests imports neither torch nor ray nor mlflow, and no client of Kubernetes.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.console import show_log
from rayfuse.errors import RayfuseError, RunInterruptedError, SpecError

if TYPE_CHECKING:
    from rayfuse.api.specs import SpecSource
    from rayfuse.cluster.jobs import JobClient, JobInfo
    from rayfuse.cluster.manifests import Manifest
    from rayfuse.cluster.submission import SubmissionBundle, TargetEnvironment
    from rayfuse.spec.base import Spec
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
        except KeyboardInterrupt:
            raise RunInterruptedError(
                f"interrupted; {self.name} keeps running\n{self.commands('logs', 'stop')}"
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


@dataclass(frozen=True)
class Submission:
    """A spec that is valid for a cluster, and not submitted yet."""

    name: str
    """Name that it will have on the cluster."""
    bundle: "SubmissionBundle"
    """The spec and the files to send with it."""
    location: JobLocation
    """The cluster."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of a job on a Ray cluster."""
    manifests: "list[Manifest]" = field(default_factory=list)
    """Manifests of the ConfigMap and the RayJob or RayService; none for a Ray cluster."""

    @property
    def kind(self) -> str:
        """job, sweep or service."""
        return self.bundle.kind

    def to_yaml(self) -> str:
        """Return the manifests as YAML, for `kubectl apply`."""
        from rayfuse.cluster.manifests import to_yaml

        return to_yaml(self.manifests)

    def dry_run(self) -> None:
        """Have the API server of Kubernetes validate the manifests; nothing is created.

        Raises:
            SpecError: It rejects them, or the location is a Ray cluster.
            UnavailableError: Kubernetes is unreachable or denies access.
        """
        if self.location.address:
            raise SpecError("a dry run requires a cluster spec; a Ray cluster has no manifests")
        self._kubernetes().dry_run(self.manifests)

    def submit(self) -> SubmittedJob:
        """Submit it; a service of the same name is updated.

        Raises:
            SpecError: The cluster rejects it, or has a job of this name.
            UnavailableError: The cluster is unreachable or denies access.
        """
        if self.location.address:
            return self._submit_to_ray(self.location.address)
        jobs = self._kubernetes()
        jobs.submit(self.manifests)
        _log.info("%s: submitted to namespace %s", self.name, self.location.namespace)
        return SubmittedJob(self.name, self.kind, self.location, jobs)

    def _kubernetes(self) -> Any:
        from rayfuse.cluster.kubernetes import KubernetesJobClient

        return KubernetesJobClient.connect(self.location.namespace, self.location.context)

    def _submit_to_ray(self, address: str) -> SubmittedJob:
        from rayfuse.cluster.rayjobs import submit
        from rayfuse.cluster.submission import COMMANDS

        bundle = self.bundle
        entrypoint = f"rayfuse {COMMANDS[bundle.kind]} {bundle.spec_file}"
        name = submit(address, self.name, bundle.kind, bundle.files, entrypoint, self.env)
        _log.info("%s: submitted to %s", name, address)
        return SubmittedJob(name, self.kind, self.location, self.location.connect())


def submit(
    spec: "SpecSource",
    cluster: "SpecSource | None" = None,
    *,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
    verbose: bool = True,
    **overrides: Any,
) -> SubmittedJob:
    """Submit a job, sweep or service: to Kubernetes with a cluster spec, or to the Ray cluster at an address.

    It is validated for the cluster first, on which its variables are resolved; a service of the same name is updated.

    Args:
        spec: The path or URL of a YAML file, a spec, or a dict with its `kind`.
        cluster: The cluster spec, in the same forms.
        address: Dashboard of a Ray cluster, a URL or host:port; its token must be in RAY_AUTH_TOKEN.
        env: Environment variables of a job at `address`; not for secrets, as Ray shows them.
        name: Name on the cluster: by default the spec's name, with a random suffix for jobs and sweeps.
        verbose: Show log lines, unless the application has configured logging.
        **overrides: Values of the spec by path, as in `**{"train.epochs": 3}`.

    Raises:
        SpecError: A spec is invalid or does not fit into the cluster, or the cluster has a job of this name.
        UnavailableError: The cluster is unreachable or denies access.
    """
    prepared = prepare_submission(spec, cluster, address=address, env=env, name=name, overrides=overrides)
    with show_log(verbose):
        return prepared.submit()


def render(
    spec: "SpecSource", cluster: "SpecSource", *, name: str | None = None, **overrides: Any
) -> "list[Manifest]":
    """Return the Kubernetes manifests of a job, sweep or service without submitting them.

    They are those of `submit` with the same arguments. Raises SpecError where a spec is invalid or does not fit into
    the cluster.
    """
    return prepare_submission(spec, cluster, name=name, overrides=overrides).manifests


def prepare_submission(
    spec: "SpecSource",
    cluster: "SpecSource | None" = None,
    *,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Submission:
    """Validate a spec for a cluster, with other values by path; the other arguments are those of `submit`.

    Raises SpecError with a line per problem: an invalid spec, unset variables, files of this machine, storage that is
    deleted with the pods, a spec that does not fit into the cluster.
    """
    if (cluster is None) == (address is None):
        raise SpecError("pass exactly one of cluster and address")
    if cluster is not None:
        if env:
            raise SpecError("env requires address; on Kubernetes use `env` of the cluster spec")
        return _prepare_for_kubernetes(spec, cluster, name, overrides)
    assert address is not None
    return _prepare_for_ray(spec, address, env or {}, name, overrides)


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


def _prepare_for_kubernetes(
    spec: "SpecSource", cluster: "SpecSource", name: str | None, overrides: Mapping[str, Any] | None
) -> Submission:
    from rayfuse.cluster import manifests
    from rayfuse.cluster.submission import TargetEnvironment

    place, file = _load_cluster(cluster)
    where = file or "the cluster spec"
    bundle = _build_bundle(_open(spec), overrides, TargetEnvironment.kubernetes(place, where))
    rendered = manifests.render(bundle, place, where, name)
    location = JobLocation(cluster_file=file, namespace=place.namespace, context=place.context)
    return Submission(rendered[-1]["metadata"]["name"], bundle, location, manifests=rendered)


def _prepare_for_ray(
    spec: "SpecSource",
    address: str,
    env: Mapping[str, str],
    name: str | None,
    overrides: Mapping[str, Any] | None,
) -> Submission:
    from rayfuse.cluster.manifests import job_name
    from rayfuse.cluster.submission import TargetEnvironment

    _reject_secrets(env)
    opened = _open(spec)
    _reject_service(opened, address)
    bundle = _build_bundle(opened, overrides, TargetEnvironment.ray(env))
    return Submission(name or job_name(bundle), bundle, JobLocation(address=address), env)


def _open(spec: "SpecSource") -> "Spec | str":
    """Return a spec as an object, or the path of its file."""
    if not isinstance(spec, Mapping):
        return str(spec) if isinstance(spec, (str, Path)) else spec
    from rayfuse.spec.base import Spec
    from rayfuse.spec.load import KINDS, spec_class

    kind = spec.get("kind")
    if kind not in KINDS:
        raise SpecError(f"kind: {kind!r} is not a kind of spec; one of: {', '.join(KINDS)}")
    built = spec_class(str(kind))(**spec)
    assert isinstance(built, Spec)
    return built


def _build_bundle(
    spec: "Spec | str", overrides: Mapping[str, Any] | None, target: "TargetEnvironment"
) -> "SubmissionBundle":
    from rayfuse.cluster.submission import build_bundle, bundle_spec

    if isinstance(spec, str):
        return build_bundle(spec, overrides, target)
    return bundle_spec(spec.override(**(overrides or {})), target)


def _load_cluster(cluster: "SpecSource") -> "tuple[Cluster, str | None]":
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
        spec, file = _load_cluster(cluster)
        return JobLocation(cluster_file=file, namespace=spec.namespace, context=spec.context)
    return JobLocation(address=address, namespace=namespace, context=context)


def _reject_service(spec: "Spec | str", address: str) -> None:
    from rayfuse.spec.load import read_kind
    from rayfuse.spec.service import Service

    if read_kind(spec) == "service" if isinstance(spec, str) else isinstance(spec, Service):
        where, file = (spec, spec) if isinstance(spec, str) else ("Service", "SERVICE")
        raise SpecError(
            f"{where}: kind: a service cannot be submitted to the address of a Ray cluster; use: "
            f"RAY_ADDRESS={address} rayfuse serve up {file}"
        )


def _reject_secrets(env: Mapping[str, str]) -> None:
    from rayfuse.spec.base import holds_credentials
    from rayfuse.spec.cluster import is_secret_name

    for name, value in env.items():
        if is_secret_name(name) or holds_credentials(value):
            raise SpecError(
                f"env {name}: appears to be a secret, which Ray would expose; set it on the cluster's nodes instead"
            )


def _is_done(info: "JobInfo") -> bool:
    from rayfuse.cluster.jobs import TERMINAL_STATUSES

    return info.status in TERMINAL_STATUSES or (info.kind == "service" and info.status == "RUNNING")

"""Submit jobs, sweeps and services to Kubernetes or to any Ray cluster, and follow them.

    job = rayfuse.submit("jobs/damage.yaml", "k8s/cluster.yaml")
    job.wait(on_log=print).status

Rendering manifests imports neither torch nor ray nor mlflow, and no client of Kubernetes.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.submission_checks import reject_secrets, reject_service, warn_of_rows
from rayfuse.api.submitted_jobs import JobLocation, SubmittedJob, load_cluster
from rayfuse.console import show_log
from rayfuse.errors import SpecError

if TYPE_CHECKING:
    from rayfuse.api.specs import SpecSource
    from rayfuse.cluster.kubernetes import KubernetesJobClient
    from rayfuse.cluster.manifests import Manifest
    from rayfuse.cluster.submission import SubmissionBundle, TargetEnvironment
    from rayfuse.spec.base import Spec
    from rayfuse.spec.cluster import Cluster

UNNAMED_CLUSTER = "the cluster spec"
"""A cluster spec that is not read from a file, in messages."""

_log = logging.getLogger(__name__)


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
    cluster: "Cluster | None" = None
    """The cluster spec; None for a Ray cluster."""

    @property
    def kind(self) -> str:
        """job, sweep or service."""
        return self.bundle.kind

    def to_yaml(self) -> str:
        """Return the manifests as YAML, for `kubectl apply`."""
        from rayfuse.cluster.manifests import to_yaml

        return to_yaml(self.manifests)

    def dry_run(self) -> None:
        """Have the API server of Kubernetes validate the manifests, and look up what they name; nothing is created.

        Raises:
            SpecError: It rejects them or lacks a Secret, claim, service account or queue, or the location is a Ray
                cluster.
            UnavailableError: Kubernetes is unreachable or denies access.
        """
        if self.location.address:
            raise SpecError("a dry run requires a cluster spec; a Ray cluster has no manifests")
        jobs = self._kubernetes()
        with self._translate_rejections():
            jobs.dry_run(self.manifests)
        self._check_pod_memory()

    def submit(self) -> SubmittedJob:
        """Submit it; a service of the same name is updated.

        Raises:
            SpecError: The cluster rejects it, lacks an object that its spec names, or has a job of this name.
            UnavailableError: The cluster is unreachable or denies access.
        """
        if self.bundle.job is not None:
            warn_of_rows(self.bundle.job)
        if self.location.address:
            return self._submit_to_ray(self.location.address)
        jobs = self._kubernetes()
        self._check_pod_memory()
        with self._translate_rejections():
            jobs.submit(self.manifests)
        _log.info("%s: submitted to namespace %s", self.name, self.location.namespace)
        return SubmittedJob(self.name, self.kind, self.location, jobs)

    def _kubernetes(self) -> "KubernetesJobClient":
        """Connect to Kubernetes, and look up the objects that the cluster spec names."""
        from rayfuse.cluster.kubernetes import KubernetesJobClient
        from rayfuse.cluster.references import check_references

        jobs = KubernetesJobClient.connect(self.location.namespace, self.location.context)
        assert self.cluster is not None
        check_references(jobs.kube, self.cluster, self._cluster_source)
        return jobs

    def _check_pod_memory(self) -> None:
        from rayfuse.api.memory import check_pods

        assert self.cluster is not None
        check_pods(self.bundle, self.cluster, self._cluster_source)

    @property
    def _cluster_source(self) -> str:
        return self.location.cluster_file or UNNAMED_CLUSTER

    @contextmanager
    def _translate_rejections(self) -> Iterator[None]:
        """Raise the errors of the API server with paths of the cluster spec."""
        from rayfuse.cluster.kube_errors import RejectedObjectError
        from rayfuse.cluster.spec_paths import to_spec_error

        try:
            yield
        except RejectedObjectError as error:
            raise to_spec_error(error, self.manifests[-1], self._cluster_source) from None

    def _submit_to_ray(self, address: str) -> SubmittedJob:
        from rayfuse.api.memory import check_nodes
        from rayfuse.cluster.rayjobs import RayJobClient, submit
        from rayfuse.cluster.submission import COMMANDS

        bundle, client = self.bundle, RayJobClient.connect(address)
        check_nodes(bundle, client, address)
        entrypoint = f"rayfuse {COMMANDS[bundle.kind]} {bundle.spec_file}"
        name = submit(address, self.name, bundle.kind, bundle.files, entrypoint, self.env)
        _log.info("%s: submitted to %s", name, address)
        return SubmittedJob(name, self.kind, self.location, client)


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


def _prepare_for_kubernetes(
    spec: "SpecSource", cluster: "SpecSource", name: str | None, overrides: Mapping[str, Any] | None
) -> Submission:
    from rayfuse.cluster import manifests
    from rayfuse.cluster.submission import TargetEnvironment

    place, file = load_cluster(cluster)
    where = file or UNNAMED_CLUSTER
    bundle = _build_bundle(_open(spec), overrides, TargetEnvironment.kubernetes(place, where))
    rendered = manifests.render(bundle, place, where, name)
    location = JobLocation(cluster_file=file, namespace=place.namespace, context=place.context)
    return Submission(rendered[-1]["metadata"]["name"], bundle, location, manifests=rendered, cluster=place)


def _prepare_for_ray(
    spec: "SpecSource",
    address: str,
    env: Mapping[str, str],
    name: str | None,
    overrides: Mapping[str, Any] | None,
) -> Submission:
    from rayfuse.cluster.manifests import object_name
    from rayfuse.cluster.submission import TargetEnvironment
    from rayfuse.ray_http import check_address

    check_address(address)
    reject_secrets(env)
    opened = _open(spec)
    reject_service(opened, address)
    bundle = _build_bundle(opened, overrides, TargetEnvironment.ray(env))
    return Submission(object_name(bundle, name), bundle, JobLocation(address=address), env)


def _open(spec: "SpecSource") -> "Spec | str":
    """Return a spec as an object, or the path of its file."""
    if not isinstance(spec, Mapping):
        return str(spec) if isinstance(spec, (str, Path)) else spec
    from rayfuse.formatting import truncated_repr
    from rayfuse.spec.base import Spec
    from rayfuse.spec.kinds import KINDS, is_kind, spec_class

    kind = spec.get("kind")
    if not is_kind(kind):
        raise SpecError(f"kind: {truncated_repr(kind)} is not a kind of spec; one of: {', '.join(KINDS)}")
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

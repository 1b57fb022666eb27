"""Bundle a spec for submission to a cluster, validated against the environment that it will run in.

A spec is sent with its variables (`${NAME}`) unresolved; the cluster resolves them. For validation they are resolved
here as they will be there: from the cluster spec's `env` (or `env` of the submission) and the spec's defaults, never
from the environment of this machine.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rayfuse.cluster.protocols import check_protocols
from rayfuse.errors import SpecError
from rayfuse.spec.base import Spec, SpecModel
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.job import Job
from rayfuse.spec.kinds import spec_class
from rayfuse.spec.load import folder_of, read_kind, read_spec, validate_spec
from rayfuse.spec.memory_options import memory_combinations
from rayfuse.spec.paths import ABSENT, get_at
from rayfuse.spec.pods import is_below
from rayfuse.spec.search_space import MAX_CHECKED_COMBINATIONS, format_values, search_space
from rayfuse.spec.service import Service
from rayfuse.spec.sweep import Sweep
from rayfuse.spec.variables import substitute
from rayfuse.spec.yaml_io import dump_yaml, load_yaml

COMMANDS = {"job": "train", "sweep": "tune"}
"""`rayfuse` command that runs a spec, by its kind."""

SUBMITTABLE_KINDS = (*COMMANDS, "service")
"""Kinds of spec that can be submitted."""

_LOCAL_SCHEME = "here://"
_LOCAL_BASE = _LOCAL_SCHEME + "folder/" * 30
"""Artificial base of relative paths, by which they are recognized in a validated spec."""

_SWEPT_JOB_FILE = "job.yaml"
"""File of a sweep's job in the bundle."""

_SWEPT_JOB_PATH = "job"
"""Path in a sweep of the file of its job, which is sent with it."""

_TRACKING_URI_ENV = "MLFLOW_TRACKING_URI"

AnySpec = TypeVar("AnySpec", bound=SpecModel)


@dataclass(frozen=True)
class SubmissionBundle:
    """A validated spec and the files to send with it."""

    kind: str
    """job, sweep or service."""
    name: str
    """Name of the spec."""
    source_file: str
    """File of the spec, for messages."""
    files: dict[str, str]
    """Content by file name; the spec itself is KIND.yaml."""
    job: Job | None = None
    """The job, or the largest trial of a sweep; None for a service."""
    concurrent_trials: int = 1
    """Maximum number of trials that run at the same time; 1 for a job."""
    service: Service | None = None
    """The service; None for a job or sweep."""
    memory_jobs: tuple[tuple[str, Job], ...] = ()
    """The job, or the trials of a sweep that differ in memory, each with a label for messages."""

    @property
    def spec_file(self) -> str:
        """Name of the spec's file in the bundle."""
        return f"{self.kind}.yaml"

    @property
    def digest(self) -> str:
        """First ten hexadecimal digits of the SHA-256 of all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class TargetEnvironment:
    """Environment that a spec will run in."""

    env: Mapping[str, str]
    """Environment variables, which resolve those of the spec."""
    env_source: str
    """Place where the user sets them, for messages."""
    cluster_file: str = ""
    """File of the cluster spec, for messages."""
    has_secrets: bool = True
    """True if there may be more variables, from Secrets or the nodes, whose values are not known here."""
    persistent_paths: tuple[str, ...] | None = None
    """Folders that outlive the job; None: all do."""

    @classmethod
    def kubernetes(cls, cluster: Cluster, cluster_file: str) -> "TargetEnvironment":
        """Return the environment of the pods of a cluster spec."""
        disks = tuple(volume.path for volume in cluster.volumes.values())
        return cls(cluster.env, f"`env` of {cluster_file}", cluster_file, bool(cluster.secrets.env), disks)

    @classmethod
    def ray(cls, env: Mapping[str, str]) -> "TargetEnvironment":
        """Return the environment of the nodes of an existing Ray cluster; `env` is sent with the job."""
        return cls(env, "`env` (--env)")

    def substitute_env(self, content: Any, where: str) -> Any:
        """Resolve the variables in `content`; raise SpecError where one is not set."""
        try:
            return substitute(content, self.env, where)
        except SpecError as error:
            raise SpecError(
                f"{error} (variables come from {self.env_source}, not from this machine's environment)"
            ) from None

    def validate(self, content: dict[str, Any], kind: type[AnySpec], where: str) -> AnySpec:
        """Return the validated spec; raise SpecError where it is invalid or has a path of this machine."""
        read = self.substitute_env(content, where)
        spec = validate_spec(read, kind, where, base=_LOCAL_BASE)
        self.check_no_local_paths(spec, where, content, read)
        check_protocols(_iter_strings(spec.model_dump(mode="json")), where)
        return spec

    def check_no_local_paths(
        self, spec: SpecModel, where: str, content: Any = ABSENT, read: Any = ABSENT
    ) -> None:
        """Raise SpecError for the paths of this machine in a validated spec.

        `content` is the spec as written, for messages, and `read` the same with its variables resolved.
        """
        problems = [
            f"{where}: {path}: {_display_path(value, get_at(content, path))} is a path of this machine, which the cluster "
            "cannot read; use a URL, an absolute path on the cluster, or ${DATA:-FOLDER}/FILE with DATA in "
            f"{self.env_source}"
            for path, value in _iter_strings(spec.model_dump(mode="json"))
            if _is_local_path(value, get_at(read, path))
        ]
        if problems:
            raise SpecError("\n".join(problems))

    def check_no_working_folder(self, spec: Spec, where: str) -> None:
        """Raise SpecError for paths below the working folder in a spec that was built in Python, where pods have none.

        Relative paths of such a spec were resolved when it was built, so that `check_no_local_paths` does not find them.
        """
        if self.persistent_paths is None:
            return
        folder = str(Path.cwd())
        problems = [
            f"{where}: {path}: {value} is a path of this machine, which the cluster cannot read; use a URL, or a path on "
            f"one of the `volumes` of {self.cluster_file}"
            for path, value in _iter_strings(spec.model_dump(mode="json"))
            if path != _SWEPT_JOB_PATH and is_below(value, folder) and self._is_ephemeral(value)
        ]
        if problems:
            raise SpecError("\n".join(problems))

    def check_storage(self, job: Job, where: str) -> None:
        """Raise SpecError where the results of a job would be deleted with its pods."""
        if self._is_ephemeral(job.output.storage):
            raise SpecError(
                f"{where}: output.storage: {job.output.storage} is deleted with the pod; use a URL, or a path on one of "
                f"the `volumes` of {self.cluster_file}"
            )
        self.check_tracking_uri(job.output.tracking_uri, f"{where}: output.tracking_uri")

    def check_tracking_uri(self, given: str | None, path: str) -> None:
        """Raise SpecError where the MLflow database would be deleted with its pod."""
        tracking = given or self.env.get(_TRACKING_URI_ENV)
        if tracking is None and not self.has_secrets:
            raise SpecError(
                f"{path}: missing, and {_TRACKING_URI_ENV} is not set in {self.env_source}; a registered model would be "
                "deleted with the pod: use the URL of an MLflow server"
            )
        if tracking is not None and self._is_ephemeral(tracking):
            raise SpecError(f"{path}: {tracking} is deleted with the pod; use the URL of an MLflow server")

    def check_api_keys(self, service: Service, keys: Any, where: str) -> None:
        """Raise SpecError unless API keys come from a Secret: in a pod the endpoint listens on all interfaces."""
        remedy = (
            'set keys: "${RAYFUSE_API_KEYS:-}", with RAYFUSE_API_KEYS in a Secret listed under `secrets.env` of '
            f"{self.cluster_file}"
        )
        if service.auth.keys:
            raise SpecError(f"{where}: auth.keys: API keys must not be part of a submitted spec; {remedy}")
        if "${" not in str(keys) or not self.has_secrets:
            raise SpecError(
                f"{where}: auth.keys: missing, and the endpoint is reachable from other machines; {remedy}"
            )

    def _is_ephemeral(self, url: str) -> bool:
        path = _path_in_pod(url)
        return (
            path is not None
            and self.persistent_paths is not None
            and not any(is_below(path, disk) for disk in self.persistent_paths)
        )


def build_bundle(
    source: str, overrides: Mapping[str, Any] | None, target: TargetEnvironment
) -> SubmissionBundle:
    """Load the spec file `source` with overrides by path and validate it for its target environment.

    Raises SpecError with a line per problem: unset variables, files of this machine, storage that is deleted with the
    pods, missing API keys.
    """
    kind = read_kind(source)
    _check_submittable(kind, source)
    return _bundle(kind, source, read_spec(source, spec_class(kind), overrides), target)


def bundle_spec(spec: Spec, target: TargetEnvironment) -> SubmissionBundle:
    """Validate a spec that was built in Python for its target environment. Raises SpecError as `build_bundle` does."""
    where, job_content = type(spec).__name__, None
    if isinstance(spec, Sweep) and isinstance(spec.job, Job):
        target.check_no_working_folder(spec.job, f"{where}: job")
        job_content = _content_of(spec.job)
        spec = spec.model_copy(update={"job": _SWEPT_JOB_FILE})
    content = _content_of(spec)
    _check_submittable(content["kind"], where)
    target.check_no_working_folder(spec, where)
    if job_content is not None:
        return _bundle_sweep(where, content, target, job_content)
    return _bundle(content["kind"], where, content, target)


def _bundle(kind: str, source: str, content: dict[str, Any], target: TargetEnvironment) -> SubmissionBundle:
    if kind == "job":
        return _bundle_job(source, content, target)
    if kind == "sweep":
        return _bundle_sweep(source, content, target)
    return _bundle_service(source, content, target)


def _check_submittable(kind: str, where: str) -> None:
    if kind not in SUBMITTABLE_KINDS:
        raise SpecError(
            f"{where}: kind: {kind} cannot be submitted; use one of: {', '.join(SUBMITTABLE_KINDS)}"
        )


def _content_of(spec: Spec) -> dict[str, Any]:
    """Return a spec as written to YAML, but with its API keys, which are then checked to be variables."""
    content: dict[str, Any] = load_yaml(spec.to_yaml())
    if isinstance(spec, Service) and spec.auth.keys:
        content["auth"]["keys"] = ",".join(key.get_secret_value() for key in spec.auth.keys)
    return content


def _bundle_job(source: str, content: dict[str, Any], target: TargetEnvironment) -> SubmissionBundle:
    job = target.validate(content, Job, source)
    target.check_storage(job, source)
    return SubmissionBundle(
        "job", job.name, source, {"job.yaml": _to_yaml(content)}, job=job, memory_jobs=(("", job),)
    )


def _bundle_sweep(
    source: str,
    content: dict[str, Any],
    target: TargetEnvironment,
    job_content: dict[str, Any] | None = None,
) -> SubmissionBundle:
    """Bundle a sweep with its job, or `job_content`; the cluster must have capacity for its largest trial."""
    read = target.substitute_env(content, source)
    if job_content is not None:
        read = {**read, "job": target.validate(job_content, Job, f"{source}: job")}
    sweep = validate_spec(read, Sweep, source, folder_of(source))
    space = search_space(sweep, source, target.env)
    job_source = sweep.job if isinstance(sweep.job, str) else f"{source}: job"
    if job_content is None:
        job_content = read_spec(job_source, Job)
    target.check_storage(target.validate(job_content, Job, job_source), job_source)
    bundled = replace(space, folder=_LOCAL_BASE)
    trials = [bundled.trial_job(values) for values in islice(space.combinations(), MAX_CHECKED_COMBINATIONS)]
    for trial in trials:
        target.check_no_local_paths(trial, f"{source}: space")
    files = {
        "sweep.yaml": _to_yaml({**content, "job": _SWEPT_JOB_FILE}),
        _SWEPT_JOB_FILE: _to_yaml(job_content),
    }
    largest = max(trials, key=_total_resources)
    concurrency = sweep.concurrency or getattr(sweep.search, "trials", None) or len(space.grid())
    memory_jobs = tuple(
        (f"{format_values(values)}: ", bundled.trial_job(values)) for values in memory_combinations(space)
    )
    return SubmissionBundle(
        "sweep",
        sweep.name,
        source,
        files,
        job=largest,
        concurrent_trials=concurrency,
        memory_jobs=memory_jobs,
    )


def _total_resources(job: Job) -> tuple[float, float]:
    compute = job.compute
    return compute.max_workers * compute.gpus_per_worker, compute.max_workers * compute.cpus_per_worker


def _bundle_service(source: str, content: dict[str, Any], target: TargetEnvironment) -> SubmissionBundle:
    service = target.validate(content, Service, source)
    target.check_api_keys(service, get_at(content, "auth.keys"), source)
    if service.model.startswith("models:"):
        target.check_tracking_uri(service.tracking_uri, f"{source}: tracking_uri")
    return SubmissionBundle(
        "service", service.name, source, {"service.yaml": _to_yaml(content)}, service=service
    )


def _to_yaml(content: Mapping[str, Any]) -> str:
    return dump_yaml(dict(content), width=110)


def _iter_strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, string) for each string below `node`."""
    if isinstance(node, str):
        yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield from _iter_strings(inner, f"{path}.{key}" if path else str(key))


def _display_path(checked: str, written: Any) -> str:
    return repr(checked.removeprefix(_LOCAL_BASE) if written is ABSENT else written)


def _is_local_path(checked: str, written: Any) -> bool:
    """Return whether validation resolved a string as a relative path, or one in this user's home."""
    return checked.startswith(_LOCAL_SCHEME) or (
        isinstance(written, str) and written.startswith("~") and checked != written
    )


def _path_in_pod(url: str) -> str | None:
    """Return the path in the pod's file system that a URL refers to; None for other storage."""
    scheme, separator, rest = url.partition(":")
    if not separator or url.startswith("/"):
        return url
    if scheme == "memory":
        return "/"
    if scheme in ("file", "local") or scheme.startswith("sqlite"):
        return "/" + rest.lstrip("/")
    return None

"""A spec on its way to a cluster: as the user wrote it, checked for what it will find there.

Variables travel unreplaced and are read where the spec runs. So here they are read as they will be read there: from
what the cluster spec (or `--env`) says and the spec's own defaults, and never from this machine's environment.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import yaml

from rayfuse.errors import SpecError
from rayfuse.spec.base import Block
from rayfuse.spec.cluster import Cluster, is_below
from rayfuse.spec.job import Job
from rayfuse.spec.load import check, kind_of, read_spec, spec_class, substitute
from rayfuse.spec.paths import ABSENT, get_at
from rayfuse.spec.service import Service
from rayfuse.spec.space import MOST_CHECKED, load_sweep

VERBS = {"job": "train", "sweep": "tune"}
"""The command that a pod runs for a spec that has an end."""

TRAVELS = (*VERBS, "service")

_HERE = "here://"
_BASE = _HERE + "folder/" * 30
"""Made up, so that relative paths can be told from all others once a spec is checked."""

_TRACKING = "MLFLOW_TRACKING_URI"

AnySpec = TypeVar("AnySpec", bound=Block)


@dataclass(frozen=True)
class Parcel:
    """A checked spec and the files that are sent for it."""

    kind: str
    name: str
    where: str
    """The spec's file, for messages."""
    files: dict[str, str]
    """Name → content; the spec itself is KIND.yaml."""
    job: Job | None = None
    """What is trained, in a job and in every trial of a sweep."""
    trials: int = 1
    """How many jobs shall run at a time."""
    service: Service | None = None

    @property
    def file(self) -> str:
        return f"{self.kind}.yaml"

    @property
    def digest(self) -> str:
        """Ten characters that stand for the content of all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Destination:
    """What a spec will find where it runs."""

    env: Mapping[str, str]
    """Variables, by which those in the spec are read."""
    said_in: str
    """Where people say more of them, for messages."""
    spec: str = ""
    """The cluster spec's file, for messages."""
    secrets: bool = True
    """Whether there may be variables besides, which nobody here knows."""
    disks: tuple[str, ...] | None = None
    """The folders that outlive the job; None: every folder does."""

    @classmethod
    def kubernetes(cls, cluster: Cluster, cluster_file: str) -> "Destination":
        """The pods of a cluster."""
        disks = tuple(volume.path for volume in cluster.volumes.values())
        return cls(cluster.env, f"`env` of {cluster_file}", cluster_file, bool(cluster.secrets.env), disks)

    @classmethod
    def ray(cls, env: Mapping[str, str]) -> "Destination":
        """The nodes of a Ray cluster that somebody else looks after; `env` is sent along."""
        return cls(env, "--env")

    def read(self, content: Any, where: str) -> Any:
        """`content` with its variables as they will be read there."""
        try:
            return substitute(content, self.env, where)
        except SpecError as error:
            raise SpecError(
                f"{error} (it will run with the variables of {self.said_in}, not those of this machine)"
            ) from None

    def check(self, content: dict[str, Any], kind: type[AnySpec], where: str) -> AnySpec:
        """The checked spec; no path in it may be one of this machine."""
        read = self.read(content, where)
        spec = check(read, kind, where, base=_BASE)
        self.check_paths(spec, where, content, read)
        return spec

    def check_paths(self, spec: Block, where: str, content: Any = ABSENT, read: Any = ABSENT) -> None:
        """Refuse every path of this machine in a checked spec, shown as `content` has it."""
        left = [
            f"{where}: {path}: {_shown(value, get_at(content, path))} is on this machine, where the cluster does not "
            f"see it; write a URL, an absolute path that is there, or ${{DATA:-FOLDER}}/FILE with DATA in {self.said_in}"
            for path, value in _texts(spec.model_dump(mode="json"))
            if _is_of_this_machine(value, get_at(read, path))
        ]
        if left:
            raise SpecError("\n".join(left))

    def check_outputs(self, job: Job, where: str) -> None:
        """What a job leaves must not go with its pods."""
        if self._vanishes(job.output.storage):
            raise SpecError(
                f"{where}: output.storage: {job.output.storage} is in a pod and goes with it; write a URL, or a path "
                f"on one of the `volumes` of {self.spec}"
            )
        self.check_tracking(job.output.tracking, f"{where}: output.tracking")

    def check_tracking(self, given: str | None, path: str) -> None:
        """The registry must be one that others reach."""
        tracking = given or self.env.get(_TRACKING)
        if tracking is None and not self.secrets:
            raise SpecError(
                f"{path}: missing, and so is {_TRACKING} in {self.said_in}; without an MLflow server a registered "
                "model would go with its pod"
            )
        if tracking is not None and self._vanishes(tracking):
            raise SpecError(
                f"{path}: {tracking} is in a pod and goes with it; write the URL of an MLflow server"
            )

    def check_keys(self, service: Service, keys: Any, where: str) -> None:
        """Keys come from a Secret, and there must be some: in a pod the endpoint listens on all interfaces."""
        remedy = (
            'write keys: "${RAYFUSE_API_KEYS:-}", and put RAYFUSE_API_KEYS into a Secret that `secrets.env` of '
            f"{self.spec} names"
        )
        if service.auth.keys:
            raise SpecError(f"{where}: auth.keys: keys must not travel in a spec; {remedy}")
        if "${" not in str(keys) or not self.secrets:
            raise SpecError(f"{where}: auth.keys: none, and a cluster's endpoint is open to others; {remedy}")

    def _vanishes(self, url: str) -> bool:
        path = _path_in_pod(url)
        return (
            path is not None
            and self.disks is not None
            and not any(is_below(path, disk) for disk in self.disks)
        )


def pack(source: str, overrides: tuple[str, ...], destination: Destination) -> Parcel:
    """Read the spec file `source`, with `--set` overrides, and check that it can run at its destination.

    Raises SpecError, a line per problem, for what it would find missing there: variables, files of this machine,
    a place for results that outlives the pods, keys of an endpoint.
    """
    kind = kind_of(source)
    if kind not in TRAVELS:
        raise SpecError(f"{source}: kind: a {kind} cannot be submitted; one of: {', '.join(TRAVELS)}")
    content = read_spec(source, spec_class(kind), overrides)
    if kind == "job":
        return _pack_job(source, content, destination)
    if kind == "sweep":
        return _pack_sweep(source, content, overrides, destination)
    return _pack_service(source, content, destination)


def _pack_job(source: str, content: dict[str, Any], destination: Destination) -> Parcel:
    job = destination.check(content, Job, source)
    destination.check_outputs(job, source)
    return Parcel("job", job.name, source, {"job.yaml": _dump(content)}, job=job)


def _pack_sweep(
    source: str, content: dict[str, Any], overrides: tuple[str, ...], destination: Destination
) -> Parcel:
    """The job that a sweep varies travels beside it; the cluster must hold the largest of its trials."""
    destination.read(content, source)
    space = load_sweep(source, overrides, destination.env)
    sweep, job_file = space.sweep, space.sweep.job
    job_content = read_spec(job_file, Job)
    destination.check_outputs(destination.check(job_content, Job, job_file), job_file)
    travelling = replace(space, folder=_BASE)
    trials = [travelling.trial_job(values) for values in islice(space.combinations(), MOST_CHECKED)]
    for trial in trials:
        destination.check_paths(trial, f"{source}: space")
    sent = {**content, "job": "job.yaml"}
    files = {"sweep.yaml": _dump(sent), "job.yaml": _dump(job_content)}
    largest = max(trials, key=_size)
    at_a_time = sweep.concurrency or getattr(sweep.search, "trials", None) or len(space.grid())
    return Parcel("sweep", sweep.name, source, files, job=largest, trials=at_a_time)


def _size(job: Job) -> tuple[float, float]:
    compute = job.compute
    return compute.most * compute.gpus_per_worker, compute.most * compute.cpus_per_worker


def _pack_service(source: str, content: dict[str, Any], destination: Destination) -> Parcel:
    service = destination.check(content, Service, source)
    destination.check_keys(service, get_at(content, "auth.keys"), source)
    if service.model.startswith("models:"):
        destination.check_tracking(service.tracking, f"{source}: tracking")
    return Parcel("service", service.name, source, {"service.yaml": _dump(content)}, service=service)


def _dump(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110)


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text below `node`, and its path."""
    if isinstance(node, str):
        yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield from _texts(inner, f"{path}.{key}" if path else str(key))


def _shown(checked: str, written: Any) -> str:
    return repr(checked.removeprefix(_BASE) if written is ABSENT else written)


def _is_of_this_machine(checked: str, written: Any) -> bool:
    """Whether checking resolved a text as a relative path, or as one in this user's home."""
    return checked.startswith(_HERE) or (
        isinstance(written, str) and written.startswith("~") and checked != written
    )


def _path_in_pod(url: str) -> str | None:
    """The file that a URL names in the pod itself; None for what lies elsewhere."""
    scheme, separator, rest = url.partition(":")
    if not separator or url.startswith("/"):
        return url
    if scheme == "memory":
        return "/"
    if scheme in ("file", "local") or scheme.startswith("sqlite"):
        return "/" + rest.lstrip("/")
    return None

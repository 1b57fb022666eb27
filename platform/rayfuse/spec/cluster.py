"""Spec of a cluster: where on Kubernetes, and with which resources, KubeRay runs a submitted job, sweep or service.

What the operator would reject, long after the API server accepted the object, is rejected here.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Name, Seconds, Spec, SpecModel
from rayfuse.spec.kubernetes import (
    TEXT_OR_NUMBER,
    Cpu,
    Image,
    Label,
    LabelKey,
    LabelValue,
    Memory,
    Namespace,
    ObjectName,
    is_dns1035,
    number_to_str,
)
from rayfuse.spec.pods import MountPath, is_below, reference_problems, variable_problem
from rayfuse.spec.ray_start import RayOption, RayOptionName, option_problem

HEAD_GROUP = "headgroup"
"""KubeRay's name of the head's group."""

RESERVED_VOLUMES = ("rayfuse-spec", "ray-logs", "shared-mem")
"""Names of the volumes that Rayfuse and KubeRay add to each pod."""

_RAY_VERSION = (2, 60)
"""Version of Ray that Rayfuse requires in the image, without the last number."""


def _group_name(name: str) -> str:
    if not is_dns1035(name):
        raise PydanticCustomError(
            "group", "not a group name; write at most 63 of a-z, 0-9 and -, starting with a letter"
        )
    if name == HEAD_GROUP:
        raise PydanticCustomError("group", "not a group name: KubeRay reserves it for the head; use another")
    return name


def _volume_name(name: str) -> str:
    if name in RESERVED_VOLUMES:
        raise PydanticCustomError("volume", "not a free name: every pod has a volume of it; use another")
    return name


def _version(version: str) -> str:
    match = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
    if match is None:
        raise PydanticCustomError("version", "not a Ray version; write 2.60.0")
    if (int(match[1]), int(match[2])) != _RAY_VERSION:
        raise PydanticCustomError(
            "version", "not the version of Ray that Rayfuse requires; write that of the image, such as 2.60.0"
        )
    return version


GroupName = Annotated[str, AfterValidator(_group_name)]
"""Name of a group of workers."""
VolumeName = Annotated[Label, AfterValidator(_volume_name)]
"""Name of a volume: a DNS label."""
StringOrNumber = Annotated[str, BeforeValidator(number_to_str), WithJsonSchema(TEXT_OR_NUMBER)]
"""A text; numbers are converted."""


class Toleration(SpecModel):
    """A toleration of node taints, with Kubernetes' names."""

    key: LabelKey | None = None
    """Key of the taint; by default all keys."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Operator of the comparison."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; by default all effects."""

    @model_validator(mode="after")
    def _check(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            _reject("value", "operator Exists takes no value; remove `value`, or use operator Equal")
        if self.operator == "Equal" and self.key is None:
            _reject("key", "missing; without a key only `operator: Exists` makes sense")
        return self


class PodTemplate(SpecModel):
    """Resources of a pod, as both requests and limits."""

    cpu: Cpu
    """CPUs: 4, 0.5 or 500m."""
    memory: Memory
    """Memory: 512Mi, 16Gi."""
    gpus: int = Field(0, ge=0)
    """Number of NVIDIA GPUs."""
    accelerator: Name | None = None
    """Kind of GPU, as Ray's label `ray.io/accelerator-type`. Set `node_selector` to select nodes that have it."""
    node_selector: dict[LabelKey, LabelValue] = Field({})
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field([])
    """Taints of nodes that the pods tolerate."""
    ray: dict[RayOptionName, RayOption] = Field({})
    """Further options of `ray start`, without the dashes."""

    @model_validator(mode="after")
    def _check(self) -> "PodTemplate":
        if self.accelerator and not self.gpus:
            _reject("accelerator", f"{self.accelerator} without `gpus`; set `gpus`, or remove `accelerator`")
        if found := option_problem(self.ray):
            _reject(f"ray.{found[0]}", found[1])
        return self


class WorkerGroup(PodTemplate):
    """A group of equal worker pods."""

    min: int = Field(0, ge=0)
    """Smallest number of pods."""
    max: int = Field(ge=1)
    """Largest number of pods."""

    @model_validator(mode="after")
    def _check_min_max(self) -> "WorkerGroup":
        if self.max < self.min:
            _reject("max", f"{self.max} is less than min {self.min}")
        return self


class Secrets(SpecModel):
    """Kubernetes Secrets that the pods use."""

    env: list[ObjectName] = Field([])
    """Secrets whose keys become environment variables of every pod."""


class Volume(SpecModel):
    """A volume that all pods mount."""

    pvc: ObjectName
    """PersistentVolumeClaim with access mode ReadWriteMany."""
    path: MountPath
    """Folder in the pods, an absolute path."""


class Submission(SpecModel):
    """Options of a submitted job: submitter, retries, deadline, and deletion of its cluster."""

    mode: Literal["K8sJobMode", "SidecarMode", "HTTPMode"] = "K8sJobMode"
    """Submitter of the job: a separate pod, a sidecar of the head (whose log is deleted with the cluster), or the operator
    (without a log)."""
    shutdown: bool = True
    """Delete the Ray cluster when the job has ended."""
    ttl: Seconds | None = None
    """Time for which the cluster stays after the end of the job; by default it is deleted at once."""
    active_deadline: Annotated[Seconds, Field(ge=60)] | None = None
    """Longest time from submission to the end of the job, at least a minute."""
    backoff_limit: int = Field(0, ge=0, le=1000)
    """Number of retries of a failed job, each on a new cluster."""

    @model_validator(mode="after")
    def _check(self) -> "Submission":
        if self.ttl is not None and not self.shutdown:
            _reject("ttl", "a time to live requires `shutdown: true`; set it, or remove `ttl`")
        return self


def _validate_env(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if problem := variable_problem(name, value):
            _reject(name, problem)
    return values


class Cluster(Spec):
    """Kubernetes namespace, image and resources for submitted specs."""

    kind: Literal["cluster"]
    """Kind of spec."""
    namespace: Namespace = "default"
    """Kubernetes namespace."""
    context: str | None = Field(None, min_length=1)
    """Context of the kubeconfig; by default the current one."""
    image: Image
    """Image with Rayfuse and the extras that the spec needs."""
    ray_version: Annotated[str, AfterValidator(_version)] = "2.60.0"
    """Version of Ray in the image."""
    head: PodTemplate
    """Resources of the head pod."""
    workers: dict[GroupName, WorkerGroup] = Field({})
    """Groups of worker pods by name; without any, the head runs everything."""
    kueue_queue: Label | None = None
    """Local queue of Kueue for jobs."""
    env: Annotated[dict[str, StringOrNumber], AfterValidator(_validate_env)] = Field({})
    """Environment variables of every pod. `${VAR}` in a submitted spec reads these, not those of the submitting machine."""
    secrets: Secrets = Field(default_factory=Secrets)
    """Kubernetes Secrets that the pods use."""
    volumes: dict[VolumeName, Volume] = Field({})
    """Volumes that all pods mount, by name."""
    service_account: ObjectName | None = None
    """Service account of the pods; by default that of the namespace."""
    image_pull_secrets: list[ObjectName] = Field([])
    """Secrets for pulling the image."""
    submission: Submission = Field(default_factory=Submission)
    """Options of submitted jobs."""

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if self.kueue_queue and not self.submission.shutdown:
            _reject(
                "submission.shutdown",
                "false, and Kueue requires clusters that end with their job; set it to true, or remove `kueue_queue`",
            )
        for name, problem in reference_problems(self.env, bool(self.secrets.env)):
            _reject(f"env.{name}", problem)
        _reject_duplicates("secrets.env", self.secrets.env)
        _reject_duplicates("image_pull_secrets", self.image_pull_secrets)
        _reject_nested({f"volumes.{name}.path": volume.path for name, volume in self.volumes.items()})
        return self


def _reject_duplicates(path: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            _reject(f"{path}.{i}", f"{name} is given twice")


def _reject_nested(paths: dict[str, str]) -> None:
    for field, path in paths.items():
        for other, above in paths.items():
            if field != other and is_below(path, above):
                _reject(field, f"{path} lies in {above} of {other}; mount them side by side")


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("cluster", "{reason}", {"reason": reason, "path": path})

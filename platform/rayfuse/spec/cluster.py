"""Spec of a cluster: where on Kubernetes, and with which resources, KubeRay runs a submitted job, sweep or service.

What the operator would reject, long after the API server accepted the object, is rejected here.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Name, Pattern, Seconds, Spec, SpecModel, holds_credentials

SPEC_FOLDER = "/etc/rayfuse/spec"
"""Folder with the submitted spec in every pod."""

HEAD_GROUP = "headgroup"
"""KubeRay's name of the head's group."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CPU = re.compile(r"(\d+(?:\.\d+)?)(m?)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
_MIN_BYTES_WITHOUT_UNIT = 10_000_000

_SECRET_WORDS = (
    "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "SECRETS", "TOKEN", "KEY", "KEYS", "CREDENTIAL", "CREDENTIALS",
)  # fmt: skip
_FILE_SUFFIXES = ("FILE", "PATH", "DIR")
_NON_SECRET_NAMES = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Names that look like a secret's but contain the path of a file."""

_RESERVED_VARIABLES = {
    **dict.fromkeys(
        ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_CLUSTER_NAME"),
        "KubeRay sets it in every pod; leave it out",
    ),
    "RAY_REDIS_ADDRESS": "it would switch on a fault tolerance that Rayfuse does not set up; leave it out",
    "REDIS_USERNAME": "KubeRay rejects it here; leave it out",
    "RAY_enable_autoscaler_v2": "KubeRay decides on the autoscaler; leave it out",
}

_SET_BY_OTHER_FIELDS = {"num-cpus": "cpu", "num-gpus": "gpus", "memory": "memory"}
_SET_BY_KUBERAY = {"address", "block", "head", "node-ip-address", "no-monitor", "metrics-export-port"}
_MIN_RAY_VERSION = (2, 52, 0)


def _number_to_str(value: Any) -> Any:
    """Return numbers as text; booleans are ambiguous and returned unchanged."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _option_to_str(value: Any) -> Any:
    """Return an option as text, which is what KubeRay expects; a flag as `true`."""
    return str(value).lower() if isinstance(value, bool) else _number_to_str(value)


def _cpu(value: str) -> str:
    if not _CPU.fullmatch(value) or parse_cpu(value) <= 0:
        raise PydanticCustomError("cpu", "not a number of CPUs; write 4, 0.5 or 500m")
    return value


def _memory(value: str) -> str:
    match = _MEMORY.fullmatch(value)
    if not match:
        raise PydanticCustomError("memory", "not a quantity of Kubernetes; write 512Mi or 16Gi")
    if not match[2] and float(match[1]) < _MIN_BYTES_WITHOUT_UNIT:
        raise PydanticCustomError(
            "memory", "not a usable amount: a number without a unit counts bytes; write 512Mi or 16Gi"
        )
    return value


def parse_cpu(cpu: str) -> float:
    """Return the number of CPUs of a quantity: 0.5 for `500m`."""
    match = _CPU.fullmatch(cpu)
    assert match
    return float(match[1]) * (0.001 if match[2] else 1)


def is_dns1035(name: str, max_length: int = 63) -> bool:
    """Return whether KubeRay accepts a name: a DNS label that starts with a letter."""
    return len(name) <= max_length and _DNS1035.fullmatch(name) is not None


def _group_name(name: str) -> str:
    if not is_dns1035(name):
        raise PydanticCustomError(
            "group", "not a group name; write at most 63 of a-z, 0-9 and -, starting with a letter"
        )
    if name == HEAD_GROUP:
        raise PydanticCustomError("group", "not a group name: KubeRay reserves it for the head; use another")
    return name


def _label(name: str) -> str:
    if len(name) > 63 or not _LABEL.fullmatch(name):
        raise PydanticCustomError("label", "not a name on Kubernetes; write at most 63 of a-z, 0-9 and -")
    return name


def _subdomain(name: str) -> str:
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise PydanticCustomError(
            "object", "not a name on Kubernetes; write at most 253 of a-z, 0-9, - and ."
        )
    return name


def _image(image: str) -> str:
    if not re.fullmatch(r"[^\s@]+(@sha256:[0-9a-f]{64})?", image):
        raise PydanticCustomError("image", "not an image; write REGISTRY/NAME:TAG")
    return image


def _version(version: str) -> str:
    numbers = (
        tuple(int(part) for part in version.split(".")) if re.fullmatch(r"\d+(\.\d+){2}", version) else ()
    )
    if not numbers:
        raise PydanticCustomError("version", "not a Ray version; write 2.60.0")
    if numbers < _MIN_RAY_VERSION:
        raise PydanticCustomError("version", "not a version with token authentication; write 2.52.0 or newer")
    return version


def _mount_path(path: str) -> str:
    if not re.fullmatch(r"(/[^/:\s]+)+", path) or {".", ".."} & set(path.split("/")):
        raise PydanticCustomError("path", "not a folder in a pod; write an absolute path such as /mnt/data")
    if is_below(path, SPEC_FOLDER) or is_below(SPEC_FOLDER, path):
        raise PydanticCustomError(
            "path", "not a free folder: {folder} is where pods find the spec", {"folder": SPEC_FOLDER}
        )
    return path


def is_below(path: str, folder: str) -> bool:
    """Return whether an absolute path is `folder` or inside it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def is_secret_name(name: str) -> bool:
    """Return whether a variable's name is that of a secret, whose value must not be in a file or a manifest."""
    words = name.upper().split("_")
    if name in _NON_SECRET_NAMES or words[-1] in _FILE_SUFFIXES:
        return False
    return any(word.endswith(_SECRET_WORDS) for word in words)


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}

Cpu = Annotated[str, BeforeValidator(_number_to_str), AfterValidator(_cpu), WithJsonSchema(_TEXT_OR_NUMBER)]
"""CPUs in Kubernetes notation: 4, 0.5 or 500m."""

Memory = Annotated[
    str, BeforeValidator(_number_to_str), AfterValidator(_memory), WithJsonSchema(_TEXT_OR_NUMBER)
]
"""Memory in Kubernetes notation: 512Mi, 16Gi."""

StringOrNumber = Annotated[str, BeforeValidator(_number_to_str), WithJsonSchema(_TEXT_OR_NUMBER)]
"""A text; numbers are converted."""

_RayOptionName = Annotated[
    str,
    Pattern(
        r"^[a-z][a-z-]*$",
        "not an option; write its name without the leading dashes, as in object-store-memory",
    ),
]

RayOption = Annotated[
    str,
    BeforeValidator(_option_to_str),
    WithJsonSchema({"anyOf": [*_TEXT_OR_NUMBER["anyOf"], {"type": "boolean"}]}),
]
"""Value of an option of `ray start`."""

GroupName = Annotated[str, AfterValidator(_group_name)]
"""Name of a group of workers."""
Label = Annotated[str, AfterValidator(_label)]
"""A DNS label."""
ObjectName = Annotated[str, AfterValidator(_subdomain)]
"""Name of a Kubernetes object: a DNS subdomain."""


class Toleration(SpecModel):
    """A toleration of node taints, with Kubernetes' names."""

    key: str | None = None
    """Key of the taint; by default all keys."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Operator of the comparison."""
    value: StringOrNumber | None = None
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
    node_selector: dict[str, str] = Field({})
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field([])
    """Taints of nodes that the pods tolerate."""
    ray: dict[_RayOptionName, RayOption] = Field({})
    """Further options of `ray start`, without the dashes."""

    @model_validator(mode="after")
    def _check(self) -> "PodTemplate":
        if self.accelerator and not self.gpus:
            _reject("accelerator", f"{self.accelerator} without `gpus`; set `gpus`, or remove `accelerator`")
        for option in self.ray:
            if option in _SET_BY_OTHER_FIELDS:
                _reject(f"ray.{option}", f"given twice; set only `{_SET_BY_OTHER_FIELDS[option]}`")
            if option == "labels":
                _reject("ray.labels", "KubeRay rejects it here; `accelerator` sets the label that Ray knows")
            if option in _SET_BY_KUBERAY:
                _reject(f"ray.{option}", "KubeRay sets it; leave it out")
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
    path: Annotated[str, AfterValidator(_mount_path)]
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
    active_deadline: Annotated[Seconds, Field(ge=1)] | None = None
    """Longest time from submission to the end of the job."""
    backoff_limit: int = Field(0, ge=0)
    """Number of retries of a failed job, each on a new cluster."""

    @model_validator(mode="after")
    def _check(self) -> "Submission":
        if self.ttl is not None and not self.shutdown:
            _reject("ttl", "a time to live requires `shutdown: true`; set it, or remove `ttl`")
        return self


def _validate_env(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not _VARIABLE_NAME.fullmatch(name):
            _reject(name, "not a variable name; write A-Z, 0-9 and _, not starting with a digit")
        if name in _RESERVED_VARIABLES:
            _reject(name, _RESERVED_VARIABLES[name])
        if is_secret_name(name) or holds_credentials(value):
            _reject(
                name, "looks like a secret, and specs are stored; put it into a Secret named in `secrets.env`"
            )
    return values


class Cluster(Spec):
    """Kubernetes namespace, image and resources for submitted specs."""

    kind: Literal["cluster"]
    """Kind of spec."""
    namespace: Label = "default"
    """Kubernetes namespace."""
    context: str | None = Field(None, min_length=1)
    """Context of the kubeconfig; by default the current one."""
    image: Annotated[str, AfterValidator(_image)]
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
    volumes: dict[Label, Volume] = Field({})
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
        _reject_duplicates("secrets.env", self.secrets.env)
        _reject_duplicates("image_pull_secrets", self.image_pull_secrets)
        _reject_nested({f"volumes.{name}.path": volume.path for name, volume in self.volumes.items()})
        return self


def _reject_duplicates(path: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            _reject(f"{path}.{i}", f"{name} is given twice")


def _reject_nested(paths: Mapping[str, str]) -> None:
    for field, path in paths.items():
        for other, above in paths.items():
            if field != other and is_below(path, above):
                _reject(field, f"{path} lies in {above} of {other}; mount them side by side")


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("cluster", "{reason}", {"reason": reason, "path": path})

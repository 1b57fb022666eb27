"""`kind: cluster`: where on Kubernetes, and with what, KubeRay runs a submitted job, sweep or service.

Machines are given per group of pods; KubeRay's own names for things stay out of it. What the operator alone would
find wrong, long after the API server has taken the object, is refused here.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block, Seconds, holds_credentials

SPEC_FOLDER = "/etc/rayfuse/spec"
"""Where pods find the submitted spec."""

HEAD_GROUP = "headgroup"
"""KubeRay's name for the head's group."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CPU = re.compile(r"(\d+(?:\.\d+)?)(m?)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
_BYTES = {
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTP", 1)},
    **{unit: 1000.0**power for power, unit in enumerate("kMGTP", 1)},
    "": 1.0,
}
_LEAST_BYTES_WITHOUT_UNIT = 10_000_000

_SECRET_WORDS = (
    "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "SECRETS", "TOKEN", "KEY", "KEYS", "CREDENTIAL", "CREDENTIALS",
)  # fmt: skip
_NAMES_A_FILE = ("FILE", "PATH", "DIR")
_NO_SECRETS = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Names that look like a secret's and hold the path of a file."""

_NOT_YOURS = {
    **dict.fromkeys(
        ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_CLUSTER_NAME"),
        "KubeRay sets it in every pod; leave it out",
    ),
    "RAY_REDIS_ADDRESS": "it would switch on a fault tolerance that Rayfuse does not set up; leave it out",
    "REDIS_USERNAME": "KubeRay refuses it here; leave it out",
    "RAY_enable_autoscaler_v2": "KubeRay decides on the autoscaler; leave it out",
}

_GIVEN_ELSEWHERE = {"num-cpus": "cpu", "num-gpus": "gpus", "memory": "memory"}
_SET_BY_KUBERAY = {"address", "block", "head", "node-ip-address", "no-monitor", "metrics-export-port"}
_FIRST_WITH_TOKENS = (2, 52, 0)


def _text(value: Any) -> Any:
    """Numbers are what people write for quantities and variables; a bool is a mistake with two readings."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _option(value: Any) -> Any:
    """KubeRay takes every option as a text, a flag as `true`."""
    return str(value).lower() if isinstance(value, bool) else _text(value)


def _cpu(value: str) -> str:
    if not _CPU.fullmatch(value) or cores(value) <= 0:
        raise PydanticCustomError("cpu", "not a number of CPUs; write 4, 0.5 or 500m")
    return value


def _memory(value: str) -> str:
    match = _MEMORY.fullmatch(value)
    if not match:
        raise PydanticCustomError("memory", "not a quantity of Kubernetes; write 512Mi or 16Gi")
    if not match[2] and float(match[1]) < _LEAST_BYTES_WITHOUT_UNIT:
        raise PydanticCustomError(
            "memory", "not an amount that helps: a number alone counts bytes; write 512Mi or 16Gi"
        )
    return value


def cores(cpu: str) -> float:
    """The CPUs of a quantity: 0.5 for `500m`."""
    match = _CPU.fullmatch(cpu)
    assert match
    return float(match[1]) * (0.001 if match[2] else 1)


def is_dns1035(name: str, longest: int = 63) -> bool:
    """Whether KubeRay takes `name`: a label of DNS that starts with a letter."""
    return len(name) <= longest and _DNS1035.fullmatch(name) is not None


def _group_name(name: str) -> str:
    if not is_dns1035(name):
        raise PydanticCustomError(
            "group", "not a name of a group; write at most 63 of a-z, 0-9 and -, starting with a letter"
        )
    if name == HEAD_GROUP:
        raise PydanticCustomError("group", "not a name of a group: KubeRay calls the head so; take another")
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
        raise PydanticCustomError("version", "not a version of Ray; write 2.60.0")
    if numbers < _FIRST_WITH_TOKENS:
        raise PydanticCustomError("version", "not a Ray that can ask for a token; 2.52.0 or newer can")
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
    """Whether an absolute path is `folder` or lies in it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def looks_secret(name: str) -> bool:
    """Whether a variable's name says that its value must not be written into a file or a manifest."""
    words = name.upper().split("_")
    if name in _NO_SECRETS or words[-1] in _NAMES_A_FILE:
        return False
    return any(word.endswith(_SECRET_WORDS) for word in words)


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}

Cpu = Annotated[str, BeforeValidator(_text), AfterValidator(_cpu), WithJsonSchema(_TEXT_OR_NUMBER)]
"""CPUs as Kubernetes counts them: 4, 0.5 or 500m."""

Memory = Annotated[str, BeforeValidator(_text), AfterValidator(_memory), WithJsonSchema(_TEXT_OR_NUMBER)]
"""Memory as Kubernetes counts it: 512Mi, 16Gi."""

Plain = Annotated[str, BeforeValidator(_text), WithJsonSchema(_TEXT_OR_NUMBER)]
"""A text, which may be written as a number."""

RayOption = Annotated[
    str,
    BeforeValidator(_option),
    WithJsonSchema({"anyOf": [*_TEXT_OR_NUMBER["anyOf"], {"type": "boolean"}]}),
]
"""The value of an option of `ray start`."""

GroupName = Annotated[str, AfterValidator(_group_name)]
Label = Annotated[str, AfterValidator(_label)]
ObjectName = Annotated[str, AfterValidator(_subdomain)]


class Toleration(Block):
    """A taint of nodes that the pods may run on all the same, as Kubernetes words it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Plain | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            _refuse("value", "operator Exists takes no value; leave one of the two out")
        if self.operator == "Equal" and self.key is None:
            _refuse("key", "missing; without a key only `operator: Exists` makes sense")
        return self


class Machine(Block):
    """What one pod gets. It is guaranteed that much, and may use no more."""

    cpu: Cpu
    memory: Memory
    gpus: int = Field(0, ge=0)
    """NVIDIA GPUs."""
    accelerator: str | None = Field(
        None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63
    )
    """The kind of GPU, as Ray's label `ray.io/accelerator-type`. Which nodes have it differs from cloud to cloud:
    `node_selector` says so."""
    node_selector: dict[str, str] = Field({})
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field([])
    ray: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], RayOption] = Field({})
    """More options of `ray start`, without the dashes."""

    @model_validator(mode="after")
    def _check(self) -> "Machine":
        if self.accelerator and not self.gpus:
            _refuse("accelerator", f"{self.accelerator} without `gpus`; write how many, or leave it out")
        for option in self.ray:
            if option in _GIVEN_ELSEWHERE:
                _refuse(f"ray.{option}", f"given twice; `{_GIVEN_ELSEWHERE[option]}` beside it is enough")
            if option == "labels":
                _refuse("ray.labels", "KubeRay refuses it here; `accelerator` sets the label that Ray knows")
            if option in _SET_BY_KUBERAY:
                _refuse(f"ray.{option}", "KubeRay sets it; leave it out")
        return self


class WorkerGroup(Machine):
    """Pods of one size that do the work."""

    min: int = Field(0, ge=0)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerGroup":
        if self.max < self.min:
            _refuse("max", f"{self.max} is less than min {self.min}")
        return self


class Secrets(Block):
    env: list[ObjectName] = Field([])
    """Secrets whose keys become variables of every pod."""


class Volume(Block):
    claim: ObjectName
    """A PersistentVolumeClaim that all pods can mount at a time (ReadWriteMany)."""
    path: Annotated[str, AfterValidator(_mount_path)]


class Submission(Block):
    """How KubeRay runs a job and what it does when the job has ended."""

    mode: Literal["K8sJobMode", "SidecarMode", "HTTPMode"] = "K8sJobMode"
    """What hands the job to Ray: a pod of its own, a container beside the head (its log goes with the cluster), or
    the operator (which keeps no log)."""
    shutdown: bool = True
    """Delete the Ray cluster when the job has ended."""
    ttl: Seconds | None = None
    """How long the cluster stays after the end of the job; not at all where absent."""
    deadline: Annotated[Seconds, Field(ge=1)] | None = None
    """Longest time from submission to the end of the job."""
    retries: int = Field(0, ge=0)
    """How often a failed job starts again, on a new cluster."""

    @model_validator(mode="after")
    def _check(self) -> "Submission":
        if self.ttl is not None and not self.shutdown:
            _refuse("ttl", "a time to live needs `shutdown: true`; leave one of the two out")
        return self


def _variables(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not _VARIABLE_NAME.fullmatch(name):
            _refuse(name, "not a name of a variable; write A-Z, 0-9 and _, not starting with a digit")
        if name in _NOT_YOURS:
            _refuse(name, _NOT_YOURS[name])
        if looks_secret(name) or holds_credentials(value):
            _refuse(
                name, "looks like a secret, and specs are stored; put it into a Secret named in `secrets.env`"
            )
    return values


class Cluster(Block):
    """Where on Kubernetes, and with what, submitted specs run."""

    kind: Literal["cluster"]
    namespace: Label = "default"
    context: str | None = Field(None, min_length=1)
    """Context of the kubeconfig; the current one where absent."""
    image: Annotated[str, AfterValidator(_image)]
    """Holds Rayfuse with the extras that the spec needs."""
    ray_version: Annotated[str, AfterValidator(_version)] = "2.60.0"
    """The Ray of the image."""
    head: Machine
    workers: dict[GroupName, WorkerGroup] = Field({})
    """Groups of pods that do the work; without any, the head does it."""
    queue: Label | None = None
    """Local queue of Kueue that admits jobs."""
    env: Annotated[dict[str, Plain], AfterValidator(_variables)] = Field({})
    """Variables of every pod. They, and nothing of this machine's, are what `${VAR}` in a submitted spec reads."""
    secrets: Secrets = Secrets()
    volumes: dict[Label, Volume] = Field({})
    service_account: ObjectName | None = None
    pull_secrets: list[ObjectName] = Field([])
    """Secrets that let nodes pull the image."""
    submission: Submission = Submission()

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if self.queue and not self.submission.shutdown:
            _refuse(
                "submission.shutdown", "false, but Kueue needs to get the cluster back; drop it or `queue`"
            )
        _refuse_repeated("secrets.env", self.secrets.env)
        _refuse_repeated("pull_secrets", self.pull_secrets)
        _refuse_nested({f"volumes.{name}.path": volume.path for name, volume in self.volumes.items()})
        return self


def _refuse_repeated(path: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            _refuse(f"{path}.{i}", f"{name} is given twice")


def _refuse_nested(paths: Mapping[str, str]) -> None:
    for field, path in paths.items():
        for other, above in paths.items():
            if field != other and is_below(path, above):
                _refuse(field, f"{path} lies in {above} of {other}; mount them side by side")


def _refuse(path: str, reason: str) -> None:
    raise PydanticCustomError("cluster", "{reason}", {"reason": reason, "path": path})

"""Value types of Kubernetes: names, labels, quantities and images, with the rules of its API server and nodes.

The API server takes many of them for plain text in a custom resource, so that only a pod fails, long after submission.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(rf"({_QUALIFIED_NAME.pattern})?")

_CPU = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)(m?)")
_MEMORY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
_BYTES_PER_UNIT = {
    "": 1,
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTP", 1)},
    **{prefix: 1000**power for power, prefix in enumerate("kMGTP", 1)},
}
_MIN_BYTES_WITHOUT_UNIT = 10_000_000
_MIN_POD_BYTES = 512 * 1024**2
"""Memory of a Ray node that runs nothing: Ray's object store takes 30% and at least 75 MiB, its processes the rest."""
_MAX_POD_BYTES = 64 * 1024**4
_MAX_CPUS = 4096

_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = rf"(?:{_HOST}(?:\.{_HOST})*|\[[0-9a-fA-F:]+\])(?::\d+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64}|@sha512:[0-9a-f]{128})?"
)
"""Grammar of image references, as in github.com/distribution/reference."""
_MAX_IMAGE_NAME = 255
_MAX_IMAGE_LENGTH = _MAX_IMAGE_NAME + 300

_SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")

TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
"""JSON Schema of a text for which a number may be written."""


def number_to_str(value: Any) -> Any:
    """Return numbers as text; booleans are ambiguous and returned unchanged."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def parse_cpu(cpu: str) -> float:
    """Return the number of CPUs of a quantity: 0.5 for `500m`."""
    match = _CPU.fullmatch(cpu)
    assert match
    return float(match[1]) * (0.001 if match[2] else 1)


def parse_memory(memory: str) -> int:
    """Return the bytes of a quantity: 1073741824 for `1Gi`."""
    match = _MEMORY.fullmatch(memory)
    assert match
    return int(float(match[1]) * _BYTES_PER_UNIT[match[2]])


def is_dns1035(name: str, max_length: int = 63) -> bool:
    """Return whether KubeRay accepts a name: a DNS label that starts with a letter."""
    return len(name) <= max_length and _DNS1035.fullmatch(name) is not None


def _cpu(value: str) -> str:
    if not _CPU.fullmatch(value) or parse_cpu(value) <= 0:
        raise PydanticCustomError("cpu", "not a number of CPUs; write 4, 0.5 or 500m")
    thousandths = parse_cpu(value) * 1000
    if abs(thousandths - round(thousandths)) > 1e-6:
        raise PydanticCustomError("cpu", "not a number of CPUs: Kubernetes counts in steps of 1m; write 500m")
    if parse_cpu(value) > _MAX_CPUS:
        raise PydanticCustomError("cpu", "not a number of CPUs that a node has; write 4, 0.5 or 500m")
    return value


def _memory(value: str) -> str:
    match = _MEMORY.fullmatch(value)
    if not match:
        raise PydanticCustomError("memory", "not a quantity of Kubernetes; write 512Mi or 16Gi")
    if not match[2] and float(match[1]) < _MIN_BYTES_WITHOUT_UNIT:
        raise PydanticCustomError(
            "memory", "not a usable amount: a number without a unit counts bytes; write 512Mi or 16Gi"
        )
    if parse_memory(value) < _MIN_POD_BYTES:
        raise PydanticCustomError("memory", "not enough for a Ray node; write 512Mi or more, such as 16Gi")
    if parse_memory(value) > _MAX_POD_BYTES:
        raise PydanticCustomError("memory", "not an amount that a node has; write 64Ti or less, such as 16Gi")
    return value


def _label(name: str) -> str:
    if len(name) > 63 or not _LABEL.fullmatch(name):
        raise PydanticCustomError("label", "not a name on Kubernetes; write at most 63 of a-z, 0-9 and -")
    return name


def _namespace(name: str) -> str:
    if name in _SYSTEM_NAMESPACES:
        raise PydanticCustomError("namespace", "not a namespace for jobs: it is Kubernetes' own; use another")
    return _label(name)


def _subdomain(name: str) -> str:
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise PydanticCustomError(
            "object", "not a name on Kubernetes; write at most 253 of a-z, 0-9, - and ."
        )
    return name


def _label_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    has_prefix = len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix) is not None
    if (slash and not has_prefix) or not _QUALIFIED_NAME.fullmatch(name):
        raise PydanticCustomError(
            "label_key",
            "not a key of a label; write NAME or DOMAIN/NAME, as in nvidia.com/gpu.product, with at most 63 letters, "
            "digits, `-`, `_` and `.` in NAME",
        )
    return key


def _label_value(value: str) -> str:
    if not _LABEL_VALUE.fullmatch(value):
        raise PydanticCustomError(
            "label_value",
            "not a value of a label; write at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both "
            "ends",
        )
    return value


def _image(image: str) -> str:
    match = _IMAGE.fullmatch(image) if len(image) <= _MAX_IMAGE_LENGTH else None
    if "://" in image:
        reason = "not an image: it is a URL; leave out {scheme}://"
        raise PydanticCustomError("image", reason, {"scheme": image.partition("://")[0]})
    if not match or len(match["name"]) > _MAX_IMAGE_NAME:
        raise PydanticCustomError(
            "image",
            "not an image; write REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST, with NAME in lower case",
        )
    return image


Cpu = Annotated[str, BeforeValidator(number_to_str), AfterValidator(_cpu), WithJsonSchema(TEXT_OR_NUMBER)]
"""CPUs in Kubernetes notation: 4, 0.5 or 500m."""

Memory = Annotated[
    str, BeforeValidator(number_to_str), AfterValidator(_memory), WithJsonSchema(TEXT_OR_NUMBER)
]
"""Memory of a pod in Kubernetes notation: 512Mi, 16Gi."""

Label = Annotated[str, AfterValidator(_label)]
"""A DNS label (RFC 1123)."""
Namespace = Annotated[str, AfterValidator(_namespace)]
"""A namespace, but none of Kubernetes' own."""
ObjectName = Annotated[str, AfterValidator(_subdomain)]
"""Name of a Kubernetes object: a DNS subdomain (RFC 1123)."""
LabelKey = Annotated[str, AfterValidator(_label_key)]
"""Key of a label or a taint: NAME or DOMAIN/NAME."""
LabelValue = Annotated[
    str, BeforeValidator(number_to_str), AfterValidator(_label_value), WithJsonSchema(TEXT_OR_NUMBER)
]
"""Value of a label or a taint; numbers are converted."""
Image = Annotated[str, AfterValidator(_image)]
"""Reference of a container image."""

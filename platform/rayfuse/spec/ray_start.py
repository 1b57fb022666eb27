"""Options of `ray start` (Ray 2.60) that a cluster spec may set for its pods."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from rayfuse.spec.base import Pattern
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.kubernetes import TEXT_OR_NUMBER, number_to_str

_MIN_OBJECT_STORE_BYTES = 75 * 1024**2
_INTEGER = re.compile(r"[0-9]{1,20}")
_PLAIN_TEXT = re.compile(r"[\w./:,@%+=-]+")

PORT_OPTIONS = (
    "dashboard-agent-grpc-port", "dashboard-agent-listen-port", "dashboard-port", "max-worker-port",
    "min-worker-port", "node-manager-port", "object-manager-port", "port", "ray-client-server-port",
    "runtime-env-agent-port",
)  # fmt: skip
"""Options that are ports."""

INTEGER_OPTIONS = ("object-store-memory", "system-reserved-memory")
"""Options that are other integers."""

NUMBER_OPTIONS = ("system-reserved-cpu",)
"""Options that are numbers."""

FLAG_OPTIONS = (
    "disable-usage-stats", "enable-object-reconstruction", "enable-resource-isolation", "include-dashboard",
    "include-log-monitor", "no-redirect-output", "ray-debugger-external",
)  # fmt: skip
"""Options that are true or false."""

JSON_OPTIONS = ("resources", "system-config")
"""Options that are mappings in JSON, which KubeRay expects in quotes."""

TEXT_OPTIONS = (
    "cgroup-path", "dashboard-host", "labels-file", "log-color", "log-style", "node-name", "object-spilling-directory",
    "plasma-directory", "proxy-server-url", "temp-dir", "tracing-startup-hook", "verbose", "worker-port-list",
)  # fmt: skip
"""Options that are text."""

SET_BY_OTHER_FIELDS = {"num-cpus": "cpu", "num-gpus": "gpus", "memory": "memory"}
"""Options that Rayfuse derives from another field of the pod."""

SET_BY_KUBERAY = (
    "address", "autoscaling-config", "block", "head", "metrics-export-port", "no-monitor", "node-ip-address",
    "redis-password", "redis-shard-ports", "redis-username",
)  # fmt: skip
"""Options that KubeRay sets, or that only work with what KubeRay does not set up."""

OPTIONS = sorted(
    (*PORT_OPTIONS, *INTEGER_OPTIONS, *NUMBER_OPTIONS, *FLAG_OPTIONS, *JSON_OPTIONS, *TEXT_OPTIONS)
)
"""Options that a cluster spec may set."""


def _option_to_str(value: Any) -> Any:
    """Return an option as text, which is what KubeRay expects; a flag as `true`."""
    return str(value).lower() if isinstance(value, bool) else number_to_str(value)


RayOptionName = Annotated[
    str,
    Pattern(
        r"^[a-z][a-z-]*$",
        "not an option; write its name without the leading dashes, as in object-store-memory",
    ),
]
"""Name of an option, without the dashes."""

RayOption = Annotated[
    str,
    BeforeValidator(_option_to_str),
    WithJsonSchema({"anyOf": [*TEXT_OR_NUMBER["anyOf"], {"type": "boolean"}]}),
]
"""Value of an option of `ray start`."""


def to_parameters(options: Mapping[str, str]) -> dict[str, str]:
    """Return options as KubeRay's `rayStartParams`, which become words of a shell's command."""
    return {
        name: json.dumps(value) if name in JSON_OPTIONS and _is_mapping(value) else value
        for name, value in options.items()
    }


def option_problem(options: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the first option that is unknown, set elsewhere or has a wrong value, with the reason; else None."""
    for name, value in options.items():
        problem = _name_problem(name) or _value_problem(name, value)
        if problem:
            return name, problem
    return None


def _name_problem(name: str) -> str | None:
    if name in SET_BY_OTHER_FIELDS:
        return f"given twice; set only `{SET_BY_OTHER_FIELDS[name]}`"
    if name == "labels":
        return "KubeRay rejects it here; `accelerator` sets the label that Ray knows"
    if name in SET_BY_KUBERAY:
        return "KubeRay sets it; leave it out"
    return None if name in OPTIONS else f"not an option of `ray start`; {suggest_nearest(name, OPTIONS)}"


def _value_problem(name: str, value: str) -> str | None:
    if name in PORT_OPTIONS and not (_INTEGER.fullmatch(value) and int(value) < 65536):
        return f"{value} is not a port; write a number up to 65535"
    if name in INTEGER_OPTIONS and not _INTEGER.fullmatch(value):
        return f"{value} is not a number of bytes; write an integer without a unit"
    if name == "object-store-memory" and int(value) < _MIN_OBJECT_STORE_BYTES:
        return f"{value} bytes are too few for Ray; write {_MIN_OBJECT_STORE_BYTES} or more"
    if name in NUMBER_OPTIONS and not value.replace(".", "", 1).isdecimal():
        return f"{value} is not a number"
    if name in FLAG_OPTIONS and value not in ("true", "false"):
        return f"{value} is neither true nor false"
    if name in JSON_OPTIONS and not (_is_mapping(value) or _is_mapping(_unquoted(value))):
        return "not a mapping in JSON; write '{\"NAME\": 1}'"
    if name in TEXT_OPTIONS and not _PLAIN_TEXT.fullmatch(value):
        return f"{value} has characters with a meaning to the shell that starts Ray; leave them out"
    return None


def _is_mapping(text: str) -> bool:
    return isinstance(_load(text), dict)


def _unquoted(text: str) -> str:
    """Return the text in quotes of JSON; "" without any."""
    found = _load(text)
    return found if isinstance(found, str) else ""


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""Folders and environment variables of the pods of a submitted spec, and which of them a cluster spec may set."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from rayfuse.formatting import CONTROL_CHARACTER
from rayfuse.spec.base import holds_credentials

SPEC_FOLDER = "/etc/rayfuse/spec"
"""Folder with the submitted spec in every pod."""

_MOUNT_PATH = re.compile(r"(/[^/:\s]+)+")
_CLOSED_FOLDERS = {
    SPEC_FOLDER: "where pods find the spec",
    "/dev": "the folder of devices and of the shared memory of Ray",
    "/proc": "a folder of the kernel",
    "/sys": "a folder of the kernel",
    "/tmp/ray": "the folder of Ray's sessions and logs",  # noqa: S108
    "/run/secrets": "the folder of the service account's token",
    "/var/run/secrets": "the folder of the service account's token",
}
"""Folders at, in or above which nothing is mounted, and what they are."""
_IMAGE_FOLDERS = {
    "/opt/venv": "the folder of the image with Python and Rayfuse",
    "/home/ray": "the home folder of the user that runs Ray",
    **dict.fromkeys(("/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr"), "a folder of the image's system"),
}
"""Folders of the image that a volume at or above them would hide, and what they are."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_MAX_VARIABLE_BYTES = 128 * 1024
"""Length of one variable that Linux passes to a program (MAX_ARG_STRLEN)."""

_SECRET_WORDS = (
    "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "SECRETS", "TOKEN", "KEY", "KEYS", "CREDENTIAL", "CREDENTIALS",
)  # fmt: skip
_FILE_SUFFIXES = ("FILE", "PATH", "DIR")
_NON_SECRET_NAMES = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Names that look like a secret's but contain the path of a file."""

_SET_BY_KUBERAY = (
    "FQ_RAY_IP", "KUBERAY_CRD_VER", "KUBERAY_GEN_RAY_START_CMD", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH", "RAY_CLOUD_INSTANCE_ID", "RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE",
    "RAY_DASHBOARD_ADDRESS", "RAY_HEAD_POD_NAME", "RAY_IP", "RAY_JOB_SUBMISSION_ID", "RAY_NODE_TYPE_NAME", "RAY_PORT",
    "RAY_USAGE_STATS_KUBERAY_IN_USE",
)  # fmt: skip
_SET_BY_RAY = (
    "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "RAY_JOB_ID",
    "RAY_RAYLET_PID", "RAY_SESSION_DIR", "RAY_TMPDIR", "WORLD_SIZE",
)  # fmt: skip
_SET_BY_RAYFUSE = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "SERVE_SOCKET_REUSE_PORT_ENABLED")

_RESERVED_VARIABLES = {
    **dict.fromkeys(_SET_BY_KUBERAY, "KubeRay sets it in every pod; leave it out"),
    **dict.fromkeys(_SET_BY_RAY, "Ray sets it for each worker; leave it out"),
    **dict.fromkeys(_SET_BY_RAYFUSE, "Rayfuse sets it for endpoints; leave it out"),
    **dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        "Kubernetes and Ray assign the GPUs; set `gpus` instead",
    ),
    **dict.fromkeys(
        ("HOME", "HOSTNAME", "PATH", "PYTHONHOME", "VIRTUAL_ENV"), "the image sets it; leave it out"
    ),
    **dict.fromkeys(
        ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"),
        "Kubernetes sets it in every pod; leave it out",
    ),
    "RAY_REDIS_ADDRESS": "it would switch on a fault tolerance that Rayfuse does not set up; leave it out",
    "REDIS_USERNAME": "KubeRay rejects it here; leave it out",
    "RAY_enable_autoscaler_v2": "KubeRay decides on the autoscaler; leave it out",
}

_TRACKING_SCHEMES = (
    "databricks", "databricks-uc", "file", "http", "https", "mssql", "mysql", "postgresql", "sqlite",
)  # fmt: skip
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(\+[a-z0-9]+)?:/")


def is_below(path: str, folder: str) -> bool:
    """Return whether an absolute path is `folder` or inside it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _mount_path(path: str) -> str:
    if not _MOUNT_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise PydanticCustomError("path", "not a folder in a pod; write an absolute path such as /mnt/data")
    for folder, what in (_CLOSED_FOLDERS | _IMAGE_FOLDERS).items():
        if is_below(folder, path) or (folder in _CLOSED_FOLDERS and is_below(path, folder)):
            raise PydanticCustomError(
                "path",
                "not a free folder: {folder} is {what}; use another, such as /mnt/data",
                {"folder": folder, "what": what},
            )
    return path


MountPath = Annotated[str, AfterValidator(_mount_path)]
"""Folder of a pod on which a volume can be mounted: an absolute path that hides nothing that pods need."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable's name is that of a secret, whose value must not be in a file or a manifest."""
    words = name.upper().split("_")
    if name in _NON_SECRET_NAMES or words[-1] in _FILE_SUFFIXES:
        return False
    return any(word.endswith(_SECRET_WORDS) for word in words)


def variable_problem(name: str, value: str) -> str | None:
    """Return why pods cannot have a variable, with the remedy; None if they can."""
    if not _VARIABLE_NAME.fullmatch(name):
        return "not a variable name; write A-Z, 0-9 and _, not starting with a digit"
    if name in _RESERVED_VARIABLES:
        return _RESERVED_VARIABLES[name]
    if is_secret_name(name) or holds_credentials(value):
        return "looks like a secret, and specs are stored; put it into a Secret named in `secrets.env`"
    if len(f"{name}={value}".encode()) >= _MAX_VARIABLE_BYTES:
        return f"{len(value)} characters, and Linux passes at most 128 KiB; put it into a file on one of `volumes`"
    if CONTROL_CHARACTER.search(value.replace("\n", "").replace("\t", "")) or value != value.strip("\r\n"):
        return "holds control characters, or a line break at its start or end; remove them"
    if name == "MLFLOW_TRACKING_URI":
        return _tracking_problem(value)
    return None


def reference_problems(env: Mapping[str, str], has_secrets: bool) -> Iterator[tuple[str, str]]:
    """Yield variables whose value has a `$(NAME)` that Kubernetes would leave as it is, with the reason.

    Kubernetes replaces the names of variables that are set before; those of Secrets are.
    """
    before: set[str] = set()
    for name, value in env.items():
        for match in _REFERENCE.finditer(value):
            used = match[1]
            if used and used not in before and _is_undefined(used, env, has_secrets):
                remedy = "set it above" if used in env else "set it in `env`"
                yield name, f"$({used}) refers to no variable that is set before; {remedy}"
        before.add(name)


def _is_undefined(name: str, env: Collection[str], has_secrets: bool) -> bool:
    """Return whether a name is that of no variable of KubeRay or a Secret."""
    return name in env or not (has_secrets or name in _SET_BY_KUBERAY or name.startswith("KUBE"))


def _tracking_problem(uri: str) -> str | None:
    match = _SCHEME.match(uri)
    if match is None or match[1].lower() in _TRACKING_SCHEMES:
        return None
    near = difflib.get_close_matches(match[1].lower(), _TRACKING_SCHEMES, n=1)
    return f"{match[1]}: is no protocol of MLflow; did you mean {near[0]}:?" if near else None

"""Checks of this machine and its configuration, which start and change nothing."""

import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rayfuse import extras

GB = 1e9
DISK_LOW, DISK_NEEDED = 10 * GB, 1 * GB
"""Bytes of free disk below which a check warns and fails."""
MEMORY_LOW, MEMORY_NEEDED = 4 * GB, 1 * GB
"""Bytes of free memory below which a check warns and fails."""
SPILL_THRESHOLD = 0.95
"""Used fraction of a disk above which Ray stops spilling objects to it."""
OBJECT_STORE_FRACTION = 0.3
"""Fraction of the memory that Ray's object store uses, in /dev/shm where it fits."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Ray's


@dataclass(frozen=True)
class CheckResult:
    """Result of one check."""

    check: str
    """Name of the check."""
    status: Literal["ok", "warn", "fail"]
    """ok, warn or fail; the command exits with 1 if one fails."""
    detail: str
    """Result of the check."""
    remedy: str = ""
    """Remedy; empty if ok."""


def doctor() -> list[CheckResult]:
    """Check Python, packages, precision, disk, memory, extension builds, MLflow and Ray's authentication."""
    return list(run_checks(os.environ))


def run_checks(environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """Run all checks, with these environment variables."""
    yield CheckResult("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    yield from (check_extra(extra) for extra in extras.EXTRAS)
    yield check_torch()
    yield check_disk("disk", Path.cwd())
    yield check_disk("disk for temporary files", Path(tempfile.gettempdir()))
    yield check_memory(available_memory())
    if _SHARED_MEMORY.is_dir():
        yield check_shared_memory(shutil.disk_usage(_SHARED_MEMORY).free, available_memory())
    yield check_extension_locks(environment, Path.home())
    yield check_mlflow(environment)
    yield check_ray_auth(environment, Path.home())


def check_extra(extra: str) -> CheckResult:
    """Check that all modules of an extra are installed."""
    missing = extras.missing_modules(extra)
    if not missing:
        return CheckResult(f"extra {extra}", "ok", "installed")
    return CheckResult(
        f"extra {extra}", "warn", f"missing {', '.join(missing)}", f"pip install 'rayfuse[{extra}]'"
    )


def check_torch() -> CheckResult:
    """Check PyTorch's build, its device, and the precision that the device supports natively."""
    if find_spec("torch") is None:
        return CheckResult("torch", "warn", "not installed", extras.TORCH_REMEDY)
    try:
        import torch
    except (ImportError, OSError) as error:
        return CheckResult("torch", "fail", f"cannot be imported: {error}", extras.TORCH_REMEDY)
    from rayfuse.training.precision import supports_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if supports_bf16(device) else "fp32 (bf16 is only emulated, and slow)"
    if device.type == "cuda":
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return CheckResult("torch", "ok", f"{torch.__version__}; {names}; precision {precision}")
    detail = f"{torch.__version__}; CPU with {torch.get_num_threads()} threads; precision {precision}"
    if torch.version.cuda and Path("/dev/nvidia0").exists():
        return CheckResult(
            "torch", "warn", f"{detail}; CUDA does not find the GPU", "check the GPU's driver (nvidia-smi)"
        )
    return CheckResult("torch", "ok", detail)


def check_disk(check: str, folder: Path) -> CheckResult:
    """Check the free space of the disk that holds `folder`."""
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / GB:.1f} GB free in {folder}"
    if usage.free < DISK_NEEDED:
        return CheckResult(check, "fail", detail, "free some space for models and checkpoints")
    if usage.used / usage.total > SPILL_THRESHOLD:
        return CheckResult(
            check, "warn", f"{detail}, over 95 % full", "free some space: Ray stops spilling objects here"
        )
    if usage.free < DISK_LOW:
        return CheckResult(check, "warn", detail, "free some space before training large models")
    return CheckResult(check, "ok", detail)


def check_memory(free: float) -> CheckResult:
    """Check the available memory, `free` in bytes."""
    detail = f"{free / GB:.1f} GB free"
    if free < MEMORY_NEEDED:
        return CheckResult("memory", "fail", detail, "stop other programs: Ray alone uses about 1 GB")
    if free < MEMORY_LOW:
        return CheckResult("memory", "warn", detail, "use few workers and small batches")
    return CheckResult("memory", "ok", detail)


def available_memory(root: Path = Path("/")) -> float:
    """Return the bytes that a new process can use: the machine's free memory, or less by the container's limit."""
    meminfo = root / "proc/meminfo"
    match = (
        re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if meminfo.exists()
        else None
    )
    free = (
        float(match[1]) * 1024 if match else float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    )
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, float(text) - float(used.read_text()))
    return free


def check_shared_memory(free: float, memory: float) -> CheckResult:
    """Check that Ray's object store fits into /dev/shm; `free` bytes there, `memory` bytes in all."""
    detail = f"{free / GB:.1f} GB free in /dev/shm"
    needed = OBJECT_STORE_FRACTION * memory
    if free < needed:
        remedy = f"run the container with --shm-size={needed / GB:.0f}g: else Ray stores objects on disk"
        return CheckResult("shared memory", "warn", detail, remedy)
    return CheckResult("shared memory", "ok", detail)


def check_extension_locks(environment: Mapping[str, str], home: Path) -> CheckResult:
    """Check for locks of killed extension builds, on which torch and DeepSpeed would wait forever."""
    from rayfuse.training.extension_locks import find_stale_locks

    stale = find_stale_locks(environment, home)
    if not stale:
        return CheckResult("build locks", "ok", "no stale locks")
    files = " ".join(map(str, stale))
    return CheckResult("build locks", "warn", f"stale locks of killed builds: {files}", f"rm {files}")


def check_mlflow(environment: Mapping[str, str]) -> CheckResult:
    """Check that the MLflow server or database of MLFLOW_TRACKING_URI is usable."""
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return CheckResult(
            "mlflow", "ok", "MLFLOW_TRACKING_URI is not set: a database in the job's output.storage is used"
        )
    redacted = re.sub(r"//[^@/]*@", "//…@", uri)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_mlflow_server(uri, redacted, environment)
    if scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        if not os.access(folder, os.W_OK):
            detail = f"{redacted}: {folder} is not a writable folder"
            return CheckResult("mlflow", "fail", detail, f"mkdir -p {folder}")
        return CheckResult("mlflow", "ok", redacted)
    if scheme in ("", "file"):
        detail = f"{redacted}: MLflow no longer supports a file store"
        return CheckResult("mlflow", "fail", detail, "use sqlite:////path/mlflow.db")
    return CheckResult("mlflow", "ok", f"{redacted} (connection not checked)")


def _check_mlflow_server(uri: str, redacted_uri: str, environment: Mapping[str, str]) -> CheckResult:
    import httpx

    headers, login = {}, None
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user := environment.get("MLFLOW_TRACKING_USERNAME"):
        login = httpx.BasicAuth(user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        status = httpx.get(url, headers=headers, auth=login, timeout=5).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start the server, or correct MLFLOW_TRACKING_URI"
        return CheckResult(
            "mlflow", "fail", f"{redacted_uri} is unreachable: {error or type(error).__name__}", remedy
        )
    if status in (401, 403):
        remedy = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
            "for 403 also check the server's --allowed-hosts"
        )
        return CheckResult("mlflow", "fail", f"{redacted_uri}: authentication failed ({status})", remedy)
    if status >= 500:
        return CheckResult("mlflow", "fail", f"{redacted_uri}: status {status}", "see the server's log")
    return CheckResult("mlflow", "ok", f"{redacted_uri} is reachable")


def check_ray_auth(environment: Mapping[str, str], home: Path) -> CheckResult:
    """Check that token authentication is enabled and the token is private."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        detail = "disabled: any client that reaches a port of Ray can run code"
        return CheckResult("ray auth", "warn", detail, "unset RAY_AUTH_MODE")
    stored = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray/auth_token")
    if environment.get("RAY_AUTH_TOKEN"):
        return CheckResult("ray auth", "ok", "token from RAY_AUTH_TOKEN")
    if stored.is_file():
        if stored.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            detail = f"the token in {stored} is readable by other users"
            return CheckResult("ray auth", "warn", detail, f"chmod 600 {stored}")
        return CheckResult("ray auth", "ok", f"token from {stored}")
    if environment.get("RAY_AUTH_TOKEN_PATH"):
        return CheckResult(
            "ray auth", "fail", f"RAY_AUTH_TOKEN_PATH: no file {stored}", "correct or unset it"
        )
    if environment.get("RAY_ADDRESS"):
        return CheckResult(
            "ray auth",
            "warn",
            "RAY_ADDRESS is set without a token",
            "set RAY_AUTH_TOKEN to the cluster's token",
        )
    return CheckResult("ray auth", "ok", "each local cluster gets a new token")

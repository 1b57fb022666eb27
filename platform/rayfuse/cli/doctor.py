"""`rayfuse doctor`: what is wrong with this machine, and what to do about it. Starts nothing, changes nothing."""

import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click

from rayfuse.cli import extras
from rayfuse.cli.output import json_option, result

GB = 1e9
DISK_LOW, DISK_NEEDED = 10 * GB, 1 * GB
MEMORY_LOW, MEMORY_NEEDED = 4 * GB, 1 * GB
SPILL_LIMIT = 0.95
"""Ray stops writing to a disk that is fuller than this."""
OBJECT_STORE_SHARE = 0.3
"""Part of the memory that Ray takes for objects, in /dev/shm where they fit."""


@dataclass(frozen=True)
class Finding:
    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


@click.command()
@click.pass_context
@json_option
def doctor(ctx: click.Context) -> None:
    """Check this machine: Python, packages, precision, disk, memory, builds, MLflow and Ray's authentication.

    Exit code 1 where a check fails.
    """
    findings = list(examine(os.environ))
    failed = any(finding.status == "fail" for finding in findings)
    result(
        {"ok": not failed, "checks": [asdict(finding) for finding in findings]},
        "\n".join(_line(finding) for finding in findings),
    )
    ctx.exit(int(failed))


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    yield from (installed(extra) for extra in extras.EXTRAS)
    yield torch()
    yield disk("disk", Path.cwd())
    yield disk("disk for temporary files", Path(tempfile.gettempdir()))
    yield memory(available_memory())
    if Path("/dev/shm").is_dir():
        yield shared_memory(shutil.disk_usage("/dev/shm").free, available_memory())
    yield build_locks(environment, Path.home())
    yield mlflow(environment)
    yield ray_auth(environment, Path.home())


def installed(extra: str) -> Finding:
    missing = extras.missing(extra)
    if not missing:
        return Finding(f"extra {extra}", "ok", "installed")
    return Finding(
        f"extra {extra}", "warn", f"missing {', '.join(missing)}", f"pip install 'rayfuse[{extra}]'"
    )


def torch() -> Finding:
    """The build of PyTorch, and what this machine's processors compute in rather than imitate."""
    if find_spec("torch") is None:
        return Finding("torch", "warn", "not installed", extras.TORCH_REMEDY)
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "fail", f"cannot be imported: {error}", extras.TORCH_REMEDY)
    from rayfuse.train.precision import computes_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    format = "bf16" if computes_bf16(device) else "fp32 (bf16 would be imitated, and slow)"
    if device.type == "cuda":
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("torch", "ok", f"{torch.__version__}; {names}; computes in {format}")
    detail = f"{torch.__version__}; CPU with {torch.get_num_threads()} threads; computes in {format}"
    if torch.version.cuda and Path("/dev/nvidia0").exists():
        return Finding(
            "torch", "warn", f"{detail}; sees no GPU although there is one", "check the GPU's driver"
        )
    return Finding("torch", "ok", detail)


def disk(check: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / GB:.1f} GB free below {folder}"
    if usage.free < DISK_NEEDED:
        return Finding(check, "fail", detail, "free some space: models and checkpoints do not fit")
    if usage.used / usage.total > SPILL_LIMIT:
        return Finding(
            check, "warn", f"{detail}, over 95 % full", "free some space: Ray stops spilling objects here"
        )
    if usage.free < DISK_LOW:
        return Finding(check, "warn", detail, "free some space before training large models")
    return Finding(check, "ok", detail)


def memory(free: float) -> Finding:
    detail = f"{free / GB:.1f} GB free"
    if free < MEMORY_NEEDED:
        return Finding("memory", "fail", detail, "stop other programs: Ray alone takes about 1 GB")
    if free < MEMORY_LOW:
        return Finding("memory", "warn", detail, "use few workers and small batches")
    return Finding("memory", "ok", detail)


def available_memory(root: Path = Path("/")) -> float:
    """Bytes that a new process could use: what the machine has free, or the container's limit where that is less."""
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


def shared_memory(free: float, memory: float) -> Finding:
    detail = f"{free / GB:.1f} GB free in /dev/shm"
    wanted = OBJECT_STORE_SHARE * memory
    if free < wanted:
        remedy = (
            f"give the container more (--shm-size={wanted / GB:.0f}g): Ray keeps objects on disk otherwise"
        )
        return Finding("shared memory", "warn", detail, remedy)
    return Finding("shared memory", "ok", detail)


def build_locks(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether compiling an operator of torch or DeepSpeed would wait for ever."""
    from rayfuse.train.build_locks import stale_locks

    stale = stale_locks(environment, home)
    if not stale:
        return Finding("build locks", "ok", "no killed build left one behind")
    files = " ".join(map(str, stale))
    return Finding("build locks", "warn", f"left by builds that were killed: {files}", f"rm {files}")


def mlflow(environment: Mapping[str, str]) -> Finding:
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Finding(
            "mlflow", "ok", "MLFLOW_TRACKING_URI is not set: a database in the job's output.storage"
        )
    shown = re.sub(r"//[^@/]*@", "//…@", uri)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _mlflow_server(uri, shown, environment)
    if scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        if not os.access(folder, os.W_OK):
            return Finding(
                "mlflow",
                "fail",
                f"{shown}: {folder} is not a folder that you can write",
                f"mkdir -p {folder}",
            )
        return Finding("mlflow", "ok", shown)
    if scheme in ("", "file"):
        return Finding(
            "mlflow", "fail", f"{shown}: MLflow no longer keeps runs in files", "sqlite:////path/mlflow.db"
        )
    return Finding("mlflow", "ok", f"{shown} (not asked whether it answers)")


def _mlflow_server(uri: str, shown: str, environment: Mapping[str, str]) -> Finding:
    import httpx

    headers, login = {}, None
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user := environment.get("MLFLOW_TRACKING_USERNAME"):
        login = httpx.BasicAuth(user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))
    question = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        status = httpx.get(question, headers=headers, auth=login, timeout=5).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start the server, or correct MLFLOW_TRACKING_URI"
        return Finding("mlflow", "fail", f"{shown} does not answer: {error or type(error).__name__}", remedy)
    if status in (401, 403):
        remedy = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
            "a server also answers 403 to host names that its --allowed-hosts does not list"
        )
        return Finding("mlflow", "fail", f"{shown} does not let us in ({status})", remedy)
    if status >= 500:
        return Finding("mlflow", "fail", f"{shown} answers {status}", "see the server's log")
    return Finding("mlflow", "ok", f"{shown} answers")


def ray_auth(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether clusters that we start or meet ask for a token."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return Finding(
            "ray auth",
            "warn",
            "switched off: whoever reaches a port of Ray can run code",
            "unset RAY_AUTH_MODE",
        )
    stored = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray/auth_token")
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding("ray auth", "ok", "token from RAY_AUTH_TOKEN")
    if stored.is_file():
        if stored.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return Finding(
                "ray auth", "warn", f"others can read the token in {stored}", f"chmod 600 {stored}"
            )
        return Finding("ray auth", "ok", f"token from {stored}")
    if environment.get("RAY_AUTH_TOKEN_PATH"):
        return Finding("ray auth", "fail", f"RAY_AUTH_TOKEN_PATH: no file {stored}", "correct or unset it")
    if environment.get("RAY_ADDRESS"):
        return Finding(
            "ray auth", "warn", "RAY_ADDRESS is set and no token is", "set RAY_AUTH_TOKEN to the cluster's"
        )
    return Finding("ray auth", "ok", "clusters on this machine get a fresh token each")


def _line(finding: Finding) -> str:
    line = f"{finding.status:<4}  {finding.check}: {finding.detail}"
    return f"{line}\n      → {finding.remedy}" if finding.remedy else line

"""Run folders, on any fsspec URL: the job, the status, the journal, the checkpoints and the results of a run.

STORAGE/JOB/RUN/run.json           status, fingerprint of job and data, MLflow run
STORAGE/JOB/RUN/job.json           the resolved job
STORAGE/JOB/RUN/metrics.jsonl      all records of the run, in order
STORAGE/JOB/RUN/evaluation.json    metrics of the best checkpoint
STORAGE/JOB/RUN/fold-1/            with data.folds: the run of each fold, as of another job
STORAGE/JOB/RUN/cross_validation.json    with data.folds: test metrics of each fold
STORAGE/JOB/RUN/calibration.safetensors   buffers that were fitted after training
STORAGE/JOB/RUN/model/             the exported model folder
STORAGE/JOB/RUN/teacher/           with train.distillation: the teacher's model folder
STORAGE/JOB/RUN/tensorboard/       with output.tensorboard: event files
STORAGE/JOB/RUN/profile/           with --profile: a trace of some steps
STORAGE/JOB/RUN/soup/              with train.model_soup: the averaged weights, in the format of a checkpoint
STORAGE/JOB/RUN/checkpoints/       best and last checkpoints (see rayfuse.training.checkpoints)
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from rayfuse.errors import ResourceError, UnavailableError
from rayfuse.spec.job import Job

_STATUS_FILE = "run.json"
_TIME_FORMAT = "%Y%m%d-%H%M%S"
_MIN_FREE_BYTES = 50_000_000
_HEARTBEAT_TIMEOUT_SECONDS = 90.0
"""Seconds without a heartbeat after which a driver on another machine counts as dead."""
_HEARTBEAT_INTERVAL_SECONDS = 20.0
_RUN_IN_USE_MESSAGE = "{}: is being trained by {}; stop it, or start another run with --no-resume"


@dataclass
class RunStatus:
    """Content of `run.json`."""

    name: str
    """Name of the folder."""
    fingerprint: str
    """Fingerprint of job and data, see `fingerprint`."""
    status: str = "running"
    """running, finished, failed or interrupted."""
    mlflow_run_id: str | None = None
    """Id of the run in MLflow."""
    version: int | None = None
    """Registered model version, once finished."""
    trial_seconds: float = 0.0
    """Seconds spent on the trials of a sweep, over all its drivers."""
    driver: tuple[str, int] | None = None
    """Host and process id of the last driver."""
    last_heartbeat: float = 0.0
    """Unix seconds of the last heartbeat of that driver."""


class RunFolder:
    """A run's folder, and its status."""

    def __init__(self, url: str, status: RunStatus, parent: "RunFolder | None" = None) -> None:
        """`parent` is the run that this one is a fold of."""
        self.url, self.status, self.parent = url, status, parent

    def title(self, name: str) -> str:
        """Return a name for people: that of the job or sweep, and the time of this attempt in UTC."""
        created = self.status.name.rpartition("-")[0]
        try:
            return f"{name} {datetime.strptime(created, _TIME_FORMAT):%Y-%m-%d %H:%M:%S}"
        except ValueError:  # a fold or trial
            return f"{name} {self.status.name.replace('-', ' ')}"

    def create(self) -> None:
        """Create the folder if it does not exist. Raises ResourceError or UnavailableError if that fails."""
        _ensure_folder(self.url)

    def save(self, **changes: Any) -> None:
        """Change the status and write it."""
        for name, value in changes.items():
            setattr(self.status, name, value)
        self.write(_STATUS_FILE, json.dumps(asdict(self.status), indent=1))

    def path(self, name: str) -> str:
        """Return the URL of a file of the run."""
        return f"{self.url}/{name}"

    def write(self, name: str, text: str) -> None:
        """Write a file of the run, atomically. Raises ResourceError or UnavailableError if that fails."""
        fs, path = fsspec.url_to_fs(self.path(name))
        partial = f"{path}.partial"
        try:
            with fs.open(partial, "w", encoding="utf-8") as file:
                file.write(text)
            fs.mv(partial, path)
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise _write_error(self.url, error) from None

    def read(self, name: str) -> str | None:
        """Return the text of a file of the run, None if it does not exist."""
        try:
            with fsspec.open(self.path(name), "r", encoding="utf-8") as file:
                return str(file.read())
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it exists."""
        fs, path = fsspec.url_to_fs(self.path(name))
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder into the run."""
        upload(folder, self.path(name))


def upload(folder: Path, url: str) -> None:
    """Copy the content of a local folder to the folder at a URL."""
    fs, path = fsspec.url_to_fs(url)
    fs.put(f"{folder}/", f"{path}/", recursive=True)


def fingerprint(job: Job, digests: Mapping[str, str]) -> str:
    """Return a hash of the job and its data, without `compute`, `output` and the feature cache."""
    content = job.model_dump(
        mode="json", exclude={"compute": True, "output": True, "data": {"feature_cache"}}
    )
    text = json.dumps([content, dict(digests)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def create_run(job: Job, digests: Mapping[str, str]) -> RunFolder:
    """Create the folder of a new run, with the resolved job in it."""
    run = create_run_folder(f"{job.output.storage}/{job.name}", fingerprint(job, digests))
    run.write("job.json", job.model_dump_json(indent=1))
    return run


def find_unfinished_run(job: Job, digests: Mapping[str, str]) -> RunFolder | None:
    """Return the newest run of the same job and data, unless it has finished."""
    newest = latest_run_folder(f"{job.output.storage}/{job.name}", fingerprint(job, digests))
    return newest if newest and newest.status.status != "finished" else None


def open_fold(run: RunFolder, fold: int) -> RunFolder:
    """Return the folder of a fold of a run, which is created if it does not exist."""
    name = f"fold-{fold}"
    saved = run.read(f"{name}/{_STATUS_FILE}")
    status = RunStatus(**json.loads(saved)) if saved else RunStatus(name, run.status.fingerprint)
    folder = RunFolder(run.path(name), status, run)
    folder.create()
    return folder


def heartbeat(run: RunFolder) -> None:
    """Write the heartbeat of the driver of a run, and of the run that it is a fold of, if the last one is 20 s old."""
    if run.parent is not None:
        heartbeat(run.parent)
    if time.time() - run.status.last_heartbeat > _HEARTBEAT_INTERVAL_SECONDS:
        with suppress(
            ResourceError, UnavailableError
        ):  # the next checkpoint fails, too, if the storage stays away
            run.save(driver=(socket.gethostname(), os.getpid()), last_heartbeat=time.time())


def acquire_run(
    run: RunFolder, log: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until no other driver trains an unfinished run. Raises ResourceError if one does."""
    status = run.status
    if status.status != "running" or status.driver is None:
        return
    host, process = status.driver
    if host == socket.gethostname():
        if process != os.getpid() and _is_running_since(process, status.last_heartbeat):
            raise ResourceError(_RUN_IN_USE_MESSAGE.format(run.url, f"process {process} of this machine"))
        return
    silent = time.time() - status.last_heartbeat
    if silent < _HEARTBEAT_TIMEOUT_SECONDS:
        log(f"{host} trained {run.url} {silent:.0f} s ago; waiting for its next heartbeat")
        sleep(_HEARTBEAT_TIMEOUT_SECONDS - silent)
        now = json.loads(run.read(_STATUS_FILE) or "{}")
        if now.get("last_heartbeat", 0.0) > status.last_heartbeat:
            raise ResourceError(_RUN_IN_USE_MESSAGE.format(run.url, f"process {process} of {host}"))


def _is_running_since(process: int, moment: float) -> bool:
    """Return whether the process runs and did at that moment: ids of ended processes are reused."""
    import psutil

    try:
        return bool(psutil.Process(process).create_time() <= moment)
    except psutil.NoSuchProcess:
        return False


def create_run_folder(parent: str, fingerprint: str) -> RunFolder:
    """Create a folder with a new name in the folder at `parent`, with its status in it."""
    name = f"{datetime.now(UTC):{_TIME_FORMAT}}-{secrets.token_hex(3)}"
    run = RunFolder(f"{parent}/{name}", RunStatus(name, fingerprint))
    run.create()
    run.save()
    return run


def latest_run_folder(parent: str, fingerprint: str) -> RunFolder | None:
    """Return the newest folder of this fingerprint in the folder at `parent`, if any."""
    fs, path = fsspec.url_to_fs(parent)
    for file in sorted(fs.glob(f"{path}/*/{_STATUS_FILE}"), reverse=True):
        try:
            status = RunStatus(**json.loads(fs.cat_file(file)))
        except (ValueError, TypeError):
            continue  # truncated, or of another version
        if status.fingerprint == fingerprint:
            return RunFolder(f"{parent}/{status.name}", status)
    return None


def check_storage(url: str) -> None:
    """Raise ResourceError or UnavailableError if the storage is not writable or full."""
    _ensure_folder(url)
    probe = f"{url}/.rayfuse-write-test-{secrets.token_hex(3)}"  # several jobs may start at once
    try:
        with fsspec.open(probe, "wb") as file:
            file.write(b"ok")
        fs, path = fsspec.url_to_fs(probe)
        fs.rm(path)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise _write_error(url, error) from None
    if "://" not in url:
        free = shutil.disk_usage(url).free
        if free < _MIN_FREE_BYTES:
            raise ResourceError(
                f"output.storage: {url}: {free / 1e6:.0f} MB free is below the minimum of {_MIN_FREE_BYTES / 1e6:.0f} MB; "
                "free some space or choose another folder"
            )


def _ensure_folder(url: str) -> None:
    try:
        fs, path = fsspec.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise _write_error(url, error) from None


def _write_error(url: str, error: Exception) -> ResourceError | UnavailableError:
    kind = UnavailableError if "://" in url else ResourceError
    return kind(
        f"output.storage: {url}: cannot be written: {type(error).__name__}: {error}; free some space or fix the "
        "access, and run the same command again to resume"
    )

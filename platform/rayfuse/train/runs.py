"""The folder of a run: what it trains, how far it is, and what came out, on any fsspec URL.

STORAGE/JOB/RUN/run.json           status, fingerprint of job and data, MLflow run
STORAGE/JOB/RUN/job.json           the resolved job
STORAGE/JOB/RUN/metrics.jsonl      everything measured, in order
STORAGE/JOB/RUN/evaluation.json    metrics of the best checkpoint
STORAGE/JOB/RUN/fitted.safetensors buffers that were fitted after training
STORAGE/JOB/RUN/model/             the exported model folder
STORAGE/JOB/RUN/teacher/           with train.distill: the teacher's model folder
STORAGE/JOB/RUN/tensorboard/       with output.tensorboard: event files
STORAGE/JOB/RUN/profile/           with --profile: a trace of some steps
STORAGE/JOB/RUN/soup/              with train.soup: the averaged weights, as a checkpoint has them
STORAGE/JOB/RUN/checkpoints/       best and last checkpoints (see rayfuse.train.checkpoints)
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from rayfuse.errors import NotReachable, ResourceError
from rayfuse.spec.job import Job

_STATUS_FILE = "run.json"
_NEEDED_BYTES = 50_000_000
_SILENCE_SECONDS = 90.0
"""After which a driver on another machine is taken for dead."""
_BEAT_SECONDS = 20.0
_TAKEN = "{}: is being trained by {}; stop that first, or start another run with --fresh"


@dataclass
class RunStatus:
    """What `run.json` holds."""

    name: str
    fingerprint: str
    status: str = "running"
    """running, finished, failed or interrupted."""
    tracking_run: str | None = None
    version: int | None = None
    seconds: float = 0.0
    """Spent on the trials of a sweep, over all its drivers."""
    driver: tuple[str, int] | None = None
    """Host and process id of who trains it, or did last."""
    alive: float = 0.0
    """Unix seconds of that driver's last sign of life."""


class RunFolder:
    """A run's folder, and its status."""

    def __init__(self, url: str, status: RunStatus) -> None:
        self.url, self.status = url, status

    def make(self) -> None:
        """Make the folder unless it is there. Raises ResourceError or NotReachable where that is not possible."""
        _make(self.url)

    def save(self, **changes: Any) -> None:
        """Change the status and write it."""
        for name, value in changes.items():
            setattr(self.status, name, value)
        self.write(_STATUS_FILE, json.dumps(asdict(self.status), indent=1))

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def write(self, name: str, text: str) -> None:
        """Write a file of the run whole or not at all."""
        fs, path = fsspec.url_to_fs(self.path(name))
        partial = f"{path}.partial"
        try:
            with fs.open(partial, "w", encoding="utf-8") as file:
                file.write(text)
            fs.mv(partial, path)
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise _not_writable(self.url, error) from None

    def read(self, name: str) -> str | None:
        """The text of a file of the run, or None where it does not exist."""
        try:
            with fsspec.open(self.path(name), "r", encoding="utf-8") as file:
                return str(file.read())
        except FileNotFoundError:
            return None

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder into the run."""
        upload(folder, self.path(name))


def upload(folder: Path, url: str) -> None:
    """Copy the content of a local folder to the folder at a URL."""
    fs, path = fsspec.url_to_fs(url)
    fs.put(f"{folder}/", f"{path}/", recursive=True)


def fingerprint(job: Job, digests: Mapping[str, str]) -> str:
    """Same for runs that would train the same thing: where and on how many workers does not matter."""
    content = job.model_dump(mode="json", exclude={"compute": True, "output": True, "data": {"cache"}})
    text = json.dumps([content, dict(digests)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def new_run(job: Job, digests: Mapping[str, str]) -> RunFolder:
    """Make the folder of a fresh run, with the resolved job in it."""
    run = new_folder(f"{job.output.storage}/{job.name}", fingerprint(job, digests))
    run.write("job.json", job.model_dump_json(indent=1))
    return run


def unfinished_run(job: Job, digests: Mapping[str, str]) -> RunFolder | None:
    """The newest run of the same job and data, if it did not finish."""
    newest = newest_folder(f"{job.output.storage}/{job.name}", fingerprint(job, digests))
    return newest if newest and newest.status.status != "finished" else None


def beat(run: RunFolder) -> None:
    """Give a sign of life as the driver of a run, if the last is some time ago."""
    if time.time() - run.status.alive > _BEAT_SECONDS:
        run.save(driver=(socket.gethostname(), os.getpid()), alive=time.time())


def take_over(
    run: RunFolder, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return once nobody else trains an unfinished run. Raises ResourceError where somebody does."""
    status = run.status
    if status.status != "running" or status.driver is None:
        return
    host, process = status.driver
    if host == socket.gethostname():
        if process != os.getpid() and _runs_since(process, status.alive):
            raise ResourceError(_TAKEN.format(run.url, f"process {process} of this machine"))
        return
    silent = time.time() - status.alive
    if silent < _SILENCE_SECONDS:
        say(f"{host} trained {run.url} {silent:.0f} s ago; waiting whether it still does")
        sleep(_SILENCE_SECONDS - silent)
        now = json.loads(run.read(_STATUS_FILE) or "{}")
        if now.get("alive", 0.0) > status.alive:
            raise ResourceError(_TAKEN.format(run.url, f"process {process} of {host}"))


def _runs_since(process: int, moment: float) -> bool:
    """Whether the process is there and was so at a moment: its number may have gone to another since."""
    import psutil

    try:
        return bool(psutil.Process(process).create_time() <= moment)
    except psutil.NoSuchProcess:
        return False


def new_folder(parent: str, fingerprint: str) -> RunFolder:
    """Make a folder of a fresh name in the folder at `parent`, with its status in it."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run = RunFolder(f"{parent}/{name}", RunStatus(name, fingerprint))
    run.make()
    run.save()
    return run


def newest_folder(parent: str, fingerprint: str) -> RunFolder | None:
    """The newest folder of this fingerprint in the folder at `parent`, if any."""
    fs, path = fsspec.url_to_fs(parent)
    for file in sorted(fs.glob(f"{path}/*/{_STATUS_FILE}"), reverse=True):
        try:
            status = RunStatus(**json.loads(fs.cat_file(file)))
        except (ValueError, TypeError):
            continue  # a file that was cut off while it was written, or of another version
        if status.fingerprint == fingerprint:
            return RunFolder(f"{parent}/{status.name}", status)
    return None


def check_storage(url: str) -> None:
    """Raise early where the storage cannot be written or is full."""
    _make(url)
    probe = f"{url}/.rayfuse-write-test-{secrets.token_hex(3)}"  # several jobs may start at once
    try:
        with fsspec.open(probe, "wb") as file:
            file.write(b"ok")
        fs, path = fsspec.url_to_fs(probe)
        fs.rm(path)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise _not_writable(url, error) from None
    if "://" not in url:
        free = shutil.disk_usage(url).free
        if free < _NEEDED_BYTES:
            raise ResourceError(
                f"output.storage: {url}: {free / 1e6:.0f} MB free, at least {_NEEDED_BYTES / 1e6:.0f} MB are needed; "
                "make room or choose another folder"
            )


def _make(url: str) -> None:
    try:
        fs, path = fsspec.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise _not_writable(url, error) from None


def _not_writable(url: str, error: Exception) -> ResourceError | NotReachable:
    kind = NotReachable if "://" in url else ResourceError
    return kind(
        f"output.storage: {url}: cannot be written: {type(error).__name__}: {error}; make room or mend the access, and "
        "run the same command again to go on"
    )

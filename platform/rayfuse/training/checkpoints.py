"""The checkpoints of a run, on any fsspec URL: written by a thread, and used only if they are complete.

RUN/checkpoints/step-00000123/…               the files of rayfuse.training.state
RUN/checkpoints/step-00000123/manifest.json   written last: step, metrics, and size and checksum of each file
"""

import errno
import json
import logging
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import fsspec

from rayfuse.errors import DataError, ResourceError, UnavailableError
from rayfuse.spec.checkpointing import RetentionPolicy

_CHECKPOINTS_FOLDER = "checkpoints"
_MANIFEST_FILE = "manifest.json"
_RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to reach a storage that fails."""
_CHUNK_BYTES = 1 << 20
"""Bytes of a file that are read at a time."""
_NON_RETRYABLE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

LogFn = Callable[[str], None]
ScoreFn = Callable[[Mapping[str, Any]], float]
"""Score of the validation metrics of a checkpoint; higher is better."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the content of its manifest, and its URL."""

    url: str
    """Folder with the files of the checkpoint."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, float] | None
    """Validation metrics; None for a checkpoint from inside an epoch."""
    files: dict[str, dict[str, Any]]
    """`bytes` and `crc32` of each file by name."""


def checkpoint_url(run: str, step: int) -> str:
    """Return the URL of the folder of the checkpoint of a step, in the run at a URL."""
    return f"{run}/{_CHECKPOINTS_FOLDER}/step-{step:08d}"


def list_checkpoints(run: str) -> list[Checkpoint]:
    """Return the complete checkpoints of the run at a URL, the newest first."""
    fs, path = fsspec.url_to_fs(f"{run}/{_CHECKPOINTS_FOLDER}")
    fs.invalidate_cache()
    found = []
    for file in fs.glob(f"{path}/*/{_MANIFEST_FILE}"):
        folder = file.rsplit("/", 2)[1]
        with suppress(ValueError, TypeError, FileNotFoundError):  # truncated, or removed meanwhile
            found.append(
                Checkpoint(url=f"{run}/{_CHECKPOINTS_FOLDER}/{folder}", **json.loads(fs.cat_file(file)))
            )
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


@contextmanager
def open_checkpoint(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a local folder with the verified files of a checkpoint.

    Raises:
        DataError: A file is missing or differs from the manifest.
        UnavailableError: The storage does not respond.
    """
    if "://" not in checkpoint.url:
        _verify(Path(checkpoint.url), checkpoint)
        yield Path(checkpoint.url)
        return
    with tempfile.TemporaryDirectory(prefix="rayfuse-checkpoint-") as scratch:
        fs, path = fsspec.url_to_fs(checkpoint.url)

        def download() -> None:
            for name in checkpoint.files:
                fs.get_file(f"{path}/{name}", f"{scratch}/{name}")

        _retry(download, checkpoint.url, "read")
        _verify(Path(scratch), checkpoint)
        yield Path(scratch)


def latest_valid_checkpoint(run: str, log: LogFn) -> Checkpoint | None:
    """Return the newest checkpoint of a run that passes verification; `log` gets a warning for each that fails."""
    for checkpoint in list_checkpoints(run):
        try:
            with open_checkpoint(checkpoint):
                return checkpoint
        except DataError as error:
            log(f"WARNING {error}; resuming from the checkpoint before it")
    return None


class AsyncCheckpointer:
    """Writer of the checkpoints of one run, in a thread, one after the other.

    Removes the checkpoints that the retention policy does not keep. As a context manager it completes the checkpoint
    that is being written on exit, also after an error.
    """

    def __init__(self, run: str, keep: RetentionPolicy, score: ScoreFn) -> None:
        """`run` is the URL of an existing folder. Raises ResourceError if a local one does not exist."""
        if "://" not in run:
            _retry(Path(run).stat, run, "written")
        self.run, self.keep, self.score = run, keep, score
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._checkpoints = list_checkpoints(run)  # the newest first
        _remove_incomplete(run, self._checkpoints)

    def save(self, step: int, metrics: dict[str, float] | None, write: Callable[[Path], None]) -> None:
        """Start to write the checkpoint of `step`: `write` gets the folder that its files belong into.

        Waits for the previous checkpoint, and raises its error.

        Raises:
            ResourceError: The storage is full or not writable.
            UnavailableError: The storage did not respond for half a minute.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(step, metrics, write), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint is complete. Raises as `save`."""
        if self._thread is not None:
            self._thread.join()
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of a checkpoint that could not be written, if any, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception) if kind else nullcontext():
            self.wait()

    def rewind_before(self, step: int) -> Checkpoint | None:
        """Remove the checkpoints from `step` on, so that no restart uses them; return the newest of the others."""
        self.wait()
        for checkpoint in self._checkpoints:
            if checkpoint.step >= step:
                remove_checkpoint(checkpoint.url)
        self._checkpoints = [checkpoint for checkpoint in self._checkpoints if checkpoint.step < step]
        return next(iter(self._checkpoints), None)

    def best_checkpoints(self) -> list[Checkpoint]:
        """Wait for the last checkpoint; return those with validation metrics, the best first."""
        self.wait()
        return sort_by_score(self._checkpoints, self.score)

    def _run(self, step: int, metrics: dict[str, float] | None, write: Callable[[Path], None]) -> None:
        try:
            written = _write(checkpoint_url(self.run, step), step, metrics, write)
            self._checkpoints = [
                written,
                *(checkpoint for checkpoint in self._checkpoints if checkpoint.step != step),
            ]
            self._remove_expired()
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._error = error

    def _remove_expired(self) -> None:
        """Remove what the policy does not keep. A failure is logged, and retried with the next checkpoint."""
        kept = retained(self._checkpoints, self.keep, self.score)
        for checkpoint in [checkpoint for checkpoint in self._checkpoints if checkpoint not in kept]:
            try:
                remove_checkpoint(checkpoint.url)
                self._checkpoints.remove(checkpoint)
            except Exception as error:  # noqa: BLE001 - each store has its own errors
                _LOG.warning("%s: cannot be removed: %s", checkpoint.url, error)


def retained(checkpoints: list[Checkpoint], keep: RetentionPolicy, score: ScoreFn) -> list[Checkpoint]:
    """Return the checkpoints that a policy keeps, given all of them, the newest first."""
    return [*checkpoints[: keep.last], *sort_by_score(checkpoints, score)[: keep.best]]


def sort_by_score(checkpoints: Iterable[Checkpoint], score: ScoreFn) -> list[Checkpoint]:
    """Return the checkpoints with validation metrics, the best first; of equal ones the oldest first."""
    validated = [(score(c.metrics), -c.step, c) for c in checkpoints if c.metrics is not None]
    return [checkpoint for _, _, checkpoint in sorted(validated, key=lambda t: t[:2], reverse=True)]


def remove_checkpoint(url: str) -> None:
    """Remove the checkpoint at a URL: its manifest first, so that no incomplete one counts as complete."""
    fs, path = fsspec.url_to_fs(url)
    with suppress(FileNotFoundError):
        fs.rm_file(f"{path}/{_MANIFEST_FILE}")
    if "://" in url:
        fs.rm(path, recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write(
    url: str, step: int, metrics: dict[str, float] | None, write: Callable[[Path], None]
) -> Checkpoint:
    fs, path = fsspec.url_to_fs(url)
    local = "://" not in url
    with tempfile.TemporaryDirectory(prefix="rayfuse-checkpoint-") as scratch:
        folder = Path(url if local else scratch)

        def produce() -> Checkpoint:
            if fs.exists(path):
                remove_checkpoint(url)  # of a run that resumed from an earlier one
            if local:
                folder.parent.mkdir(exist_ok=True)  # without its parents: a removed run must not come back
                folder.mkdir(exist_ok=True)
            write(folder)
            files = {file.name: _file_digest(file) for file in folder.iterdir()}
            if not local:
                fs.makedirs(path, exist_ok=True)
                for name in files:
                    fs.put_file(f"{folder}/{name}", f"{path}/{name}")
            written = Checkpoint(url, step, metrics, files)
            manifest = {key: value for key, value in asdict(written).items() if key != "url"}
            fs.pipe_file(f"{path}/{_MANIFEST_FILE}", json.dumps(manifest, indent=1).encode())
            return written

        try:
            return _retry(produce, url, "written")
        except BaseException:
            with suppress(Exception):  # an incomplete checkpoint occupies the space that is missing
                remove_checkpoint(url)
            raise


def _retry(work: Callable[[], T], url: str, action: str) -> T:
    """Call `work`, again after each delay while it fails with an error that may be temporary."""
    for delay in (*_RETRY_DELAYS, None):
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            if isinstance(error, FileNotFoundError) and action == "read":
                raise DataError(f"{url}: incomplete checkpoint: {error}") from None
            if isinstance(error, OSError) and error.errno in _NON_RETRYABLE_ERRNOS:
                raise ResourceError(
                    f"output.storage: {url}: cannot be {action}: {error.strerror}; free some space or fix the "
                    "permissions, and run the same command again to resume from the last checkpoint"
                ) from None
            if delay is None and isinstance(error, FileNotFoundError) and "://" not in url:
                raise _missing_run_error(url.partition(f"/{_CHECKPOINTS_FOLDER}/")[0]) from None
            if delay is None:
                raise UnavailableError(
                    f"output.storage: {url}: cannot be {action} after {len(_RETRY_DELAYS) + 1} attempts: "
                    f"{type(error).__name__}: {error}"
                ) from None
            _LOG.warning("%s cannot be %s, retrying in %g s: %s", url, action, delay, error)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _missing_run_error(run: str) -> ResourceError:
    return ResourceError(
        f"output.storage: {run}: the folder of the run does not exist any more: it was removed, or its storage unmounted, "
        "during the run; restore it and run the same command again to resume, or start another run"
    )


def _verify(folder: Path, checkpoint: Checkpoint) -> None:
    for name, digest in checkpoint.files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{checkpoint.url}: incomplete checkpoint: {name} is missing")
        if _file_digest(file) != digest:
            raise DataError(f"{checkpoint.url}: {name} differs from its size or checksum in {_MANIFEST_FILE}")


def _file_digest(file: Path) -> dict[str, Any]:
    checksum = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": file.stat().st_size, "crc32": f"{checksum:08x}"}


def _remove_incomplete(run: str, checkpoints: Iterable[Checkpoint]) -> None:
    """Remove what a worker that died left incomplete."""
    fs, path = fsspec.url_to_fs(f"{run}/{_CHECKPOINTS_FOLDER}")
    complete = {checkpoint.url.rsplit("/", 1)[-1] for checkpoint in checkpoints}
    with suppress(FileNotFoundError):
        for folder in fs.ls(path, detail=False):
            name = folder.rstrip("/").rsplit("/", 1)[-1]
            if name not in complete:
                remove_checkpoint(f"{run}/{_CHECKPOINTS_FOLDER}/{name}")

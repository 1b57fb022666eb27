"""A run's checkpoints on any fsspec URL: written in a thread, taken for whole only where they are.

RUN/checkpoints/step-00000123/…               the files of rayfuse.train.state
RUN/checkpoints/step-00000123/complete.json   written last: step, metrics, and size and checksum of each file
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

from rayfuse.errors import DataError, NotReachable, ResourceError
from rayfuse.spec.checkpointing import Keep
from rayfuse.train.pace import Pace

_FOLDER = "checkpoints"
_COMPLETE = "complete.json"
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to reach a storage that fails."""
_PIECE = 1 << 18
"""Bytes of a file that are read at a time."""
SHARE_BESIDE_TRAINING = 0.01
"""Of one processor's time for writing a checkpoint, where processors are what trains."""
_FINAL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""What no second attempt mends."""

log = logging.getLogger(__name__)

Done = TypeVar("Done")

Say = Callable[[str], None]
Goodness = Callable[[Mapping[str, Any]], float]
"""How good validation metrics are; more is better."""


@dataclass(frozen=True)
class Checkpoint:
    """What `complete.json` says, and where it was found."""

    url: str
    step: int
    metrics: dict[str, float] | None
    """Of the validation rows; None for one from inside an epoch."""
    files: dict[str, dict[str, Any]]
    """`bytes` and `crc32` of each file by name."""


def find(run: str) -> list[Checkpoint]:
    """The whole checkpoints of the run at a URL, the newest first."""
    fs, path = fsspec.url_to_fs(f"{run}/{_FOLDER}")
    fs.invalidate_cache()
    found = []
    for file in fs.glob(f"{path}/*/{_COMPLETE}"):
        folder = file.rsplit("/", 2)[1]
        with suppress(ValueError, TypeError, FileNotFoundError):  # cut off, or removed meanwhile
            found.append(Checkpoint(url=f"{run}/{_FOLDER}/{folder}", **json.loads(fs.cat_file(file))))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


@contextmanager
def opened(checkpoint: Checkpoint) -> Iterator[Path]:
    """A local folder with the files of a checkpoint, which are those that were written.

    Raises DataError where one is missing or another, NotReachable where the storage does not answer.
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

        _persist(download, checkpoint.url, "read")
        _verify(Path(scratch), checkpoint)
        yield Path(scratch)


def newest(run: str, say: Say) -> Checkpoint | None:
    """The newest checkpoint of a run whose files are all as they were written; `say` hears of others."""
    for checkpoint in find(run):
        try:
            with opened(checkpoint):
                return checkpoint
        except DataError as error:
            say(f"WARNING {error}; going on from the one before it")
    return None


class Saver:
    """Writes the checkpoints of one run in a thread, one after the other, and removes those that are not kept.

    The thread takes no more than a share of one processor's time, for as long as nobody waits for it. As a context,
    what is being written when it ends becomes whole, also where an error ends it.
    """

    def __init__(self, run: str, keep: Keep, goodness: Goodness, share: float = 1.0) -> None:
        self.run, self.keep, self.goodness, self._share = run, keep, goodness, share
        self._pace = Pace(share)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._known = find(run)  # the one written last comes first
        _remove_halves(run, self._known)

    def save(self, step: int, metrics: dict[str, float] | None, write: Callable[[Path], None]) -> None:
        """Have `write` put its files into a folder, which becomes the checkpoint of `step`.

        Waits for the one before. Raises what that one ran into: ResourceError where the storage is full or may not be
        written, NotReachable where it did not answer for half a minute.
        """
        self.wait()
        self._pace = Pace(self._share)
        self._thread = threading.Thread(
            target=self._work, args=(step, metrics, write), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint is whole; raises as `save`."""
        self.hurry()
        if self._thread is not None:
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception) if kind else nullcontext():
            self.wait()

    def hurry(self) -> None:
        """Have the checkpoint that is being written whole soon."""
        self._pace.hurry()

    def pause(self) -> None:
        """For `write` to call between small parts of its work."""
        self._pace.pause()

    def before(self, step: int) -> Checkpoint | None:
        """The newest checkpoint of a step before; later ones are removed, or a restart would go on from them."""
        self.wait()
        for checkpoint in self._known:
            if checkpoint.step >= step:
                remove(checkpoint.url)
        self._known = [checkpoint for checkpoint in self._known if checkpoint.step < step]
        return next(iter(self._known), None)

    def best(self) -> list[Checkpoint]:
        """The checkpoints that were validated, the best first, once the last of them is whole."""
        self.wait()
        return best_first(self._known, self.goodness)

    def _work(self, step: int, metrics: dict[str, float] | None, write: Callable[[Path], None]) -> None:
        url = f"{self.run}/{_FOLDER}/step-{step:08d}"
        self._pace.begin()
        try:
            written = _write(url, step, metrics, write, self._pace.pause)
            self._known = [written, *(checkpoint for checkpoint in self._known if checkpoint.step != step)]
            self._remove_others()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error

    def _remove_others(self) -> None:
        """Failing to clean up is no reason to stop: the next time does it."""
        staying = kept(self._known, self.keep, self.goodness)
        for checkpoint in [checkpoint for checkpoint in self._known if checkpoint not in staying]:
            try:
                remove(checkpoint.url)
                self._known.remove(checkpoint)
            except Exception as error:  # noqa: BLE001 - each store has its own errors
                log.warning("%s: cannot be removed: %s", checkpoint.url, error)


def kept(known: list[Checkpoint], keep: Keep, goodness: Goodness) -> list[Checkpoint]:
    """Those of the checkpoints, the newest first, that stay."""
    return [*known[: keep.last], *best_first(known, goodness)[: keep.best]]


def best_first(known: Iterable[Checkpoint], goodness: Goodness) -> list[Checkpoint]:
    """The checkpoints that were validated; of equals the oldest first."""
    validated = [(goodness(c.metrics), -c.step, c) for c in known if c.metrics is not None]
    return [checkpoint for _, _, checkpoint in sorted(validated, key=lambda t: t[:2], reverse=True)]


def _write(
    url: str,
    step: int,
    metrics: dict[str, float] | None,
    write: Callable[[Path], None],
    pause: Callable[[], None],
) -> Checkpoint:
    fs, path = fsspec.url_to_fs(url)
    local = "://" not in url
    with tempfile.TemporaryDirectory(prefix="rayfuse-checkpoint-") as scratch:
        folder = Path(url if local else scratch)

        def produce() -> Checkpoint:
            if fs.exists(path):
                remove(url)  # of a run that went on from an earlier one
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
            files = {file.name: _mark(file, pause) for file in folder.iterdir()}
            if not local:
                fs.makedirs(path, exist_ok=True)
                for name in files:
                    fs.put_file(f"{folder}/{name}", f"{path}/{name}")
            written = Checkpoint(url, step, metrics, files)
            told = {key: value for key, value in asdict(written).items() if key != "url"}
            fs.pipe_file(f"{path}/{_COMPLETE}", json.dumps(told, indent=1).encode())
            return written

        try:
            return _persist(produce, url, "written")
        except BaseException:
            with suppress(Exception):  # half a checkpoint takes the place that is missing
                remove(url)
            raise


def _persist(work: Callable[[], Done], url: str, what: str) -> Done:
    """Do `work`, again while a storage fails that may come back."""
    for pause in (*_PAUSES, None):
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            if isinstance(error, FileNotFoundError) and what == "read":
                raise DataError(f"{url}: not a whole checkpoint: {error}") from None
            if isinstance(error, OSError) and error.errno in _FINAL:
                raise ResourceError(
                    f"output.storage: {url}: cannot be {what}: {error.strerror}; make room or mend the permissions, "
                    "and run the same command again to go on from the last checkpoint"
                ) from None
            if pause is None:
                raise NotReachable(
                    f"output.storage: {url}: cannot be {what} after {len(_PAUSES) + 1} attempts: "
                    f"{type(error).__name__}: {error}"
                ) from None
            log.warning("%s cannot be %s yet, trying again in %g s: %s", url, what, pause, error)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _verify(folder: Path, checkpoint: Checkpoint) -> None:
    for name, mark in checkpoint.files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{checkpoint.url}: not a whole checkpoint: {name} is missing")
        if _mark(file) != mark:
            raise DataError(f"{checkpoint.url}: {name} is not what was written there")


def _mark(file: Path, pause: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """What tells a file from a spoilt one, and costs training that goes on meanwhile little."""
    checksum = 0
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
            pause()
    return {"bytes": file.stat().st_size, "crc32": f"{checksum:08x}"}


def remove(url: str) -> None:
    """Remove the checkpoint at a URL, first what makes it whole."""
    fs, path = fsspec.url_to_fs(url)
    with suppress(FileNotFoundError):
        fs.rm_file(f"{path}/{_COMPLETE}")
    if "://" in url:
        fs.rm(path, recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _remove_halves(run: str, known: Iterable[Checkpoint]) -> None:
    """Remove what a worker that died left half-written."""
    fs, path = fsspec.url_to_fs(f"{run}/{_FOLDER}")
    whole = {checkpoint.url.rsplit("/", 1)[-1] for checkpoint in known}
    with suppress(FileNotFoundError):
        for folder in fs.ls(path, detail=False):
            name = folder.rstrip("/").rsplit("/", 1)[-1]
            if name not in whole:
                remove(f"{run}/{_FOLDER}/{name}")

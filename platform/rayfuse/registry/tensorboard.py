"""Event files for TensorBoard, beside the run: everything measured, under the names that MLflow has."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import fsspec

from rayfuse.registry.journal import Record
from rayfuse.spec.job import Job

_FLUSH_SECONDS = 5
Log = Callable[[Sequence[Record]], None]


def check_installed(job: Job) -> None:
    """Raise ModuleNotFoundError, before anything is done, where the job wants event files and nothing can write them."""
    if job.output.tensorboard:
        import tensorboardX  # noqa: F401


@contextmanager
def event_files(job: Job, url: str, say: Callable[[str], None]) -> Iterator[Log]:
    """Writes records to the folder at `url` where the job wants it; else what is given does nothing.

    What goes wrong while writing is said once, and is no reason to stop training.
    """
    if not job.output.tensorboard:
        yield lambda records: None
        return
    files = EventFiles(url)
    failed = False

    def attempt(do: Callable[[], None]) -> None:
        nonlocal failed
        try:
            do()
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            if not failed:
                say(f"{url}: event files cannot be written: {error}; training goes on")
            failed = True

    try:
        yield lambda records: attempt(lambda: files.log(records))
    finally:
        attempt(files.close)


class EventFiles:
    """Writes records as scalars. A remote URL is written from a local copy, after each epoch and at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._remote = "://" in url
        self._folder = Path(tempfile.mkdtemp(prefix="rayfuse-events-")) if self._remote else Path(url)
        self._files = 0
        self._writer = self._open()

    def log(self, records: Sequence[Record]) -> None:
        """Add the metrics of records ({"time", "step", "metrics"})."""
        for record in records:
            step = int(record.get("step") or 0)
            if "started" in record:
                self._restart(step)
            for name, value in (record.get("metrics") or {}).items():
                if isinstance(value, Real) and not isinstance(value, bool):
                    self._writer.add_scalar(name, float(value), step, record.get("time"))
            if "epoch" in record and self._remote:
                self._upload()

    def close(self) -> None:
        """Write all that is left, and remove the local copy of remote files."""
        self._writer.close()
        if self._remote:
            self._upload()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restart(self, step: int) -> None:
        """Steps after `step` are done anew: TensorBoard forgets what it knows of them."""
        self._writer.close()
        self._writer = self._open(step + 1)

    def _open(self, first: int | None = None) -> Any:
        from tensorboardX import SummaryWriter

        self._files += 1  # files are named by the second, and a run may restart within one
        suffix = f".{os.getpid()}.{self._files}"
        return SummaryWriter(
            str(self._folder), purge_step=first, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
        )

    def _upload(self) -> None:
        filesystem, path = fsspec.url_to_fs(self.url)
        filesystem.put(f"{self._folder}/", f"{path}/", recursive=True)

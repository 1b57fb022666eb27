"""TensorBoard event files in the folder of a run, with the same metric names as in MLflow."""

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
LogRecords = Callable[[Sequence[Record]], None]
"""Function that writes records."""


def check_installed(job: Job) -> None:
    """Raise ModuleNotFoundError if the job has `output.tensorboard` and tensorboardX is not installed."""
    if job.output.tensorboard:
        import tensorboardX  # noqa: F401


@contextmanager
def event_files(job: Job, url: str, log: Callable[[str], None]) -> Iterator[LogRecords]:
    """Open event files in the folder at `url`, and yield a function that writes records to them.

    Without `output.tensorboard` that function does nothing. The first error is logged; training continues.
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
                log(f"{url}: event files cannot be written: {error}; training continues without them")
            failed = True

    try:
        yield lambda records: attempt(lambda: files.log(records))
    finally:
        attempt(files.close)


class EventFiles:
    """Event files with records as scalars. A remote URL is uploaded from a local copy, after each epoch and at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._remote = "://" in url
        self._folder = Path(tempfile.mkdtemp(prefix="rayfuse-events-")) if self._remote else Path(url)
        self._files = 0
        self._writer = self._open()

    def log(self, records: Sequence[Record]) -> None:
        """Write the metrics of records ({"time", "step", "metrics"})."""
        for record in records:
            step = int(record.get("step") or 0)
            if "first_step" in record:
                self._restart(step)
            for name, value in (record.get("metrics") or {}).items():
                if isinstance(value, Real) and not isinstance(value, bool):
                    self._writer.add_scalar(name, float(value), step, record.get("time"))
            if "epoch" in record and self._remote:
                self._upload()

    def close(self) -> None:
        """Flush and close the files, and remove the local copy of remote ones."""
        self._writer.close()
        if self._remote:
            self._upload()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restart(self, step: int) -> None:
        """Purge later steps from TensorBoard: they are repeated after a restart at `step`."""
        self._writer.close()
        self._writer = self._open(step + 1)

    def _open(self, first: int | None = None) -> Any:
        from tensorboardX import SummaryWriter

        self._files += 1  # files are named by the second, in which a run may restart
        suffix = f".{os.getpid()}.{self._files}"
        return SummaryWriter(
            str(self._folder), purge_step=first, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
        )

    def _upload(self) -> None:
        filesystem, path = fsspec.url_to_fs(self.url)
        filesystem.put(f"{self._folder}/", f"{path}/", recursive=True)

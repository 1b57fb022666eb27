"""Journal of a run: all metrics as JSON lines, whether or not MLflow is up."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec

Record = Mapping[str, Any]
"""Entry of a journal: {"time": Unix seconds, "step": int, "metrics": {name: number}}, or {"time", "data": {"digests", "sizes"}}."""

_SYNC_SECONDS = 5.0


class Journal:
    """Append-only file of records. A remote URL is uploaded from a local copy, at `flush`.

    Every method may raise OSError, or an error of the remote store.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self._remote = "://" in self.url
        self._folder = Path(tempfile.mkdtemp(prefix="rayfuse-journal-")) if self._remote else None
        self._path = Path(self.url) if self._folder is None else self._folder / "journal.jsonl"
        self._file: IO[str] | None = None
        self._synced = 0.0
        self._uploaded = 0

    def append(self, records: Sequence[Record]) -> None:
        """Append records; they are synced to disk within 5 seconds."""
        file = self._open()
        file.writelines(json.dumps(record, default=float) + "\n" for record in records)
        file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._synced = time.monotonic()
            os.fsync(file.fileno())

    def flush(self) -> None:
        """Sync all records to disk, and upload a remote journal."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._path.stat().st_size
        if self._remote and size != self._uploaded:
            filesystem, path = fsspec.url_to_fs(self.url)
            filesystem.put_file(str(self._path), path)
            self._uploaded = size

    def close(self) -> None:
        """Flush, and remove the local copy of a remote journal."""
        self.flush()
        if self._file is not None:
            self._file.close()
        self._file = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> IO[str]:
        if self._file is None:
            if self._remote:
                _fetch(self.url, self._path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        return self._file


def read_journal(url: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal in order, without lines that a crash has cut off; none if there is no file."""
    try:
        with fsspec.open(str(url), "r", encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record
    except FileNotFoundError:
        return


def _fetch(url: str, path: Path) -> None:
    """Copy the journal of the earlier process, which this one appends to."""
    filesystem, remote = fsspec.url_to_fs(url)
    if filesystem.exists(remote):
        filesystem.get_file(remote, str(path))


def _end_last_line(path: Path) -> None:
    """End a line that a crash has cut off, so that the next record starts on a new one."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

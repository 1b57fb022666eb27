"""Rows on disk in Arrow IPC files, written once and read by index through memory maps.

    STORE/SHARD.arrow    rows of one split and one file: `line`, `values` (JSON) and `contents` (list of binary)
    STORE/SPLIT.COLUMN   a number for each valid row of a split, such as its length

Values keep their exact types (see rayfuse.data.records), which may differ between rows, so they are not typed columns.
A store is in a folder that all workers reach; each machine copies a remote store once to its own disk. Mapped pages
count as memory of the process, so they are released every few reads: memory does not depend on the number of rows.
"""

import mmap
import os
import shutil
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload
from uuid import uuid4

import fsspec
import numpy as np

from rayfuse.data.file_locks import lock_exclusive, lock_shared, remove_orphans
from rayfuse.data.records import decode_values, encode_values
from rayfuse.data.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIX = ".arrow"
_SHARD_BYTES = 256 << 20
_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 20
"""Limits of a record batch: a writer holds one in memory."""
_MAX_OPEN_SHARDS = 64
_READS_PER_RELEASE = 16
"""Reads of a shard between two releases of its mapped pages."""


@dataclass(frozen=True)
class RowShard:
    """Shard of the rows of one split and one file."""

    name: str
    """Name of the shard's file, without its suffix."""
    file: str
    """URL of the file that the rows were read from."""
    batch_sizes: tuple[int, ...]
    """Rows of each record batch."""

    @property
    def num_rows(self) -> int:
        """Rows of all record batches."""
        return sum(self.batch_sizes)


class RowStore:
    """Folder of a store, removed when the process that created it drops the object; unpickled copies only read it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def temporary(cls) -> "RowStore":
        """Create a store in this machine's folder for temporary files."""
        store = cls(tempfile.mkdtemp(prefix="rayfuse-rows-"))
        weakref.finalize(store, shutil.rmtree, store.url, ignore_errors=True)
        return store

    @classmethod
    def create_in(cls, parent: str) -> "RowStore":
        """Create a store in a new folder below a URL, and remove the stores of killed processes there."""
        fs, path = fsspec.url_to_fs(parent)
        name = uuid4().hex
        store = cls(f"{parent}/{name}")
        if _is_local(fs):
            remove_orphans(Path(path))
            weakref.finalize(store, _remove_local, lock_shared(Path(path, name)), Path(path, name))
            store.url = f"{path}/{name}"
        else:
            weakref.finalize(store, _remove_remote, store.url)
        fs.makedirs(f"{path}/{name}", exist_ok=True)
        return store

    @cached_property
    def local_path(self) -> Path:
        """Folder of this machine with the store; a remote store is downloaded at first access."""
        fs, path = fsspec.url_to_fs(self.url)
        return Path(path) if _is_local(fs) else self._download(fs, path)

    def put(self, file: Path) -> None:
        """Move a local file into the store."""
        fs, path = fsspec.url_to_fs(self.url)
        if _is_local(fs):
            shutil.move(file, Path(path, file.name))
        else:
            fs.put_file(str(file), f"{path}/{file.name}")

    def temp_dir(self) -> "tempfile.TemporaryDirectory[str]":
        """Return a temporary folder for files that `put` will move into the store."""
        fs, path = fsspec.url_to_fs(self.url)
        return tempfile.TemporaryDirectory(prefix="writing-", dir=path if _is_local(fs) else None)

    def _download(self, fs: Any, path: str) -> Path:
        """Download the store once per machine; other processes wait for the first."""
        parent = Path(tempfile.gettempdir(), f"rayfuse-rows-{os.getuid()}")
        parent.mkdir(exist_ok=True)
        remove_orphans(parent)
        folder = parent / self.url.rstrip("/").rpartition("/")[2]
        weakref.finalize(self, _release_copy, lock_shared(folder), parent)
        with lock_exclusive(parent / f"{folder.name}.copying"):
            if not folder.is_dir():
                partial = tempfile.mkdtemp(prefix="copying-", dir=parent)
                fs.get(f"{path}/", f"{partial}/", recursive=True)
                Path(partial).rename(folder)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _remove_local(lock: IO[bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.name).unlink(missing_ok=True)
    lock.close()


def _release_copy(lock: IO[bytes], parent: Path) -> None:
    """Unlock this machine's copy; the last process that uses it removes it."""
    lock.close()
    remove_orphans(parent)


def _remove_remote(url: str) -> None:
    with suppress(Exception):  # each store has its own errors; a store that is left over does no harm
        fs, path = fsspec.url_to_fs(url)
        fs.rm(path, recursive=True)


class ShardWriter:
    """Writer of the rows of one file and split to a store, shard by shard."""

    def __init__(self, store: RowStore, prefix: str, file: str) -> None:
        self.shards: list[RowShard] = []
        self._store, self._prefix, self._file = store, prefix, file
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._batch: list[tuple[int, str, list[bytes]]] = []
        self._batch_bytes = self._shard_bytes = 0
        self._batch_sizes: list[int] = []

    def write(self, row: Row) -> None:
        """Add a row. Raises DataError for a value of an unsupported type."""
        text, contents = encode_values(row.values, row.origin)
        self._batch.append((row.line, text, contents))
        self._batch_bytes += len(text) + sum(map(len, contents))
        if len(self._batch) >= _BATCH_ROWS or self._batch_bytes >= _BATCH_BYTES:
            self._write_batch()
        if self._shard_bytes >= _SHARD_BYTES:
            self._close_shard()

    def close(self) -> None:
        """Write the buffered rows and put the last shard into the store."""
        if self._batch:
            self._write_batch()
        if self._folder is not None:
            self._close_shard()

    def _write_batch(self) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [("line", pa.int64()), ("values", pa.large_utf8()), ("contents", pa.list_(pa.large_binary()))]
        )
        if self._folder is None:
            self._folder = self._store.temp_dir()
            self._path = Path(self._folder.name, f"{self._prefix}-{len(self.shards):05d}{_SUFFIX}")
            self._writer = pa.ipc.new_file(str(self._path), schema)
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*self._batch, strict=True), schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=schema))
        self._batch_sizes.append(len(self._batch))
        self._shard_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0

    def _close_shard(self) -> None:
        assert self._folder is not None
        with self._folder:
            self._writer.close()
            self._store.put(self._path)
        self.shards.append(RowShard(self._path.stem, self._file, tuple(self._batch_sizes)))
        self._folder, self._batch_sizes, self._shard_bytes = None, [], 0


class _MappedShard:
    """Memory map of a shard. Mapped pages are dropped every few reads, and read again from the page cache."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._num_reads = 0

    def record(self, batch: int, row: int) -> tuple[int, str, list[bytes]]:
        """Return the line, JSON and contents of a row."""
        line, values, contents = (column[row].as_py() for column in self._read(batch).columns)
        return line, values, contents

    def records(self, batch: int, start: int, stop: int) -> Iterator[tuple[int, str, list[bytes]]]:
        """Return the rows `start` to `stop` of a record batch."""
        columns = self._read(batch).slice(start, stop - start).columns
        return zip(*(column.to_pylist() for column in columns), strict=True)

    def _read(self, batch: int) -> "pa.RecordBatch":
        self._num_reads += 1
        if self._num_reads % _READS_PER_RELEASE == 0:
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._reader.get_batch(batch)


class RowDataset(Sequence[Row]):
    """Valid rows of a split in a store; cheap to pickle. A slice is a view.

    invalid: sorted stored indices of the rows to exclude, int64 (any number,).
    """

    def __init__(
        self, store: RowStore, shards: Sequence[RowShard], split: str = "", invalid: np.ndarray | None = None
    ) -> None:
        self.store, self.shards, self.split = store, list(shards), split
        self._batches = [(i, j) for i, shard in enumerate(shards) for j in range(len(shard.batch_sizes))]
        self._ends = list(accumulate(size for shard in shards for size in shard.batch_sizes))
        invalid = np.empty(0, np.int64) if invalid is None else invalid
        self._valid_before = invalid - np.arange(len(invalid))  # valid rows before each invalid one
        self._chosen = range(self.num_stored - len(invalid))
        self._column_dtypes: dict[str, np.dtype[Any]] = {}
        self._open_shards: dict[int, _MappedShard] = {}
        self._opening = threading.Lock()

    @property
    def num_stored(self) -> int:
        """Number of stored rows, including invalid ones."""
        return self._ends[-1] if self._ends else 0

    def exclude(self, invalid: np.ndarray) -> "RowDataset":
        """Return all stored rows except those at sorted stored indices."""
        return RowDataset(self.store, self.shards, self.split, invalid)

    def get_column(self, name: str) -> np.ndarray | None:
        """Return the stored numbers of these rows, (rows, …); None if there is no such column.

        Reads the store itself, since this machine's copy may be older than the column.
        """
        if name not in self._column_dtypes:
            return None
        with fsspec.open(f"{self.store.url}/{self.split}.{name}", "rb") as file:
            numbers = np.frombuffer(file.read(), self._column_dtypes[name])
        chosen = self._chosen
        return numbers if chosen == range(len(numbers)) else numbers[np.array(chosen, dtype=np.int64)]

    def set_column(self, name: str, file: Path, dtype: np.dtype[Any]) -> None:
        """Move a file SPLIT.NAME with one entry of `dtype` per valid row of the split into the store."""
        self.store.put(file)
        self._column_dtypes[name] = dtype

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> "RowDataset": ...

    def __getitem__(self, number: int | slice) -> "Row | RowDataset":
        if isinstance(number, slice):
            return self._view(self._chosen[number])
        stored = self._to_stored_index(self._chosen[index(number)])
        place = bisect_right(self._ends, stored)
        shard, batch = self._batches[place]
        start = self._ends[place - 1] if place else 0
        return self._decode(shard, self._open(shard).record(batch, stored - start))

    def __iter__(self) -> Iterator[Row]:
        if self._chosen.step != 1 or not self._chosen:
            yield from (self[number] for number in range(len(self)))
            return
        first, last = map(self._to_stored_index, (self._chosen.start, self._chosen.stop - 1))
        invalid = {int(before + place) for place, before in enumerate(self._valid_before)}
        for place in range(bisect_right(self._ends, first), bisect_right(self._ends, last) + 1):
            shard, batch = self._batches[place]
            begin = self._ends[place - 1] if place else 0
            start, stop = max(first, begin), min(last + 1, self._ends[place])
            records = self._open(shard).records(batch, start - begin, stop - begin)
            for stored, record in enumerate(records, start):
                if stored not in invalid:
                    yield self._decode(shard, record)

    def _decode(self, shard: int, record: tuple[int, str, list[bytes]]) -> Row:
        line, text, contents = record
        return Row(decode_values(text, contents), self.shards[shard].file, line)

    def _to_stored_index(self, valid: int) -> int:
        """Return the stored index of a valid row."""
        return valid + int(np.searchsorted(self._valid_before, valid, side="right"))

    def _open(self, shard: int) -> _MappedShard:
        mapped = self._open_shards.get(shard)
        if mapped is None:
            with self._opening:
                if len(self._open_shards) >= _MAX_OPEN_SHARDS:
                    del self._open_shards[next(iter(self._open_shards))]  # closed when no thread reads it
                mapped = _MappedShard(self.store.local_path / f"{self.shards[shard].name}{_SUFFIX}")
                self._open_shards[shard] = mapped
        return mapped

    def _view(self, chosen: range) -> "RowDataset":
        view = RowDataset.__new__(RowDataset)
        view.__dict__ |= self.__dict__ | {"_chosen": chosen}
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_opening": threading.Lock()}

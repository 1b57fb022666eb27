"""Rows on disk in Arrow IPC files, written once and read by index through memory maps.

    STORE/SHARD.arrow    rows of one split and one file: `line`, `values` (JSON) and `contents` (list of binary),
                         `row_group` (-1 for none) and `embedded_bytes`
    STORE/SPLIT.COLUMN   a number for each valid row of a split, such as its length

Values keep their exact types (see rayfuse.data.records), which may differ between rows, so they are not typed columns.
A store is in a folder that all workers reach; each machine copies a remote store once to its own disk. Mapped pages
count as memory of the process, so they are released every few reads: memory does not depend on the number of rows.
Files inside rows of parquet stay there, and rows have references to them (see rayfuse.data.embedded_files).
"""

import os
import shutil
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import IO, Any, NamedTuple, overload
from uuid import uuid4

import fsspec
import numpy as np

from rayfuse.data.embedded_files import (
    BlockCache,
    ColumnPath,
    EmbeddedFile,
    detach_files,
    has_blocks,
    row_group_ends,
)
from rayfuse.data.file_locks import lock_exclusive, lock_shared, release_shared, remove_orphans
from rayfuse.data.files import read_file
from rayfuse.data.memory_map import MappedTable
from rayfuse.data.records import decode_values, encode_values
from rayfuse.data.rows import Row
from rayfuse.errors import ResourceError

_SUFFIX = ".arrow"
_SHARD_BYTES = 256 << 20
_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 20
"""Limits of a record batch: a writer holds one in memory."""
_MAX_OPEN_SHARDS = 64
DISK_CACHE = 10_000_000_000
"""Default limit of the files inside rows that a machine keeps on its disk, in bytes."""


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


class Blocks(NamedTuple):
    """Blocks that hold the files inside rows; rows without files form a separate block."""

    of_rows: np.ndarray
    """Number of each row's block: int32 (rows,)."""
    num_bytes: np.ndarray
    """Bytes of the files in each block: int64 (blocks,)."""


class RowStore:
    """Folder of a store, removed when the process that created it drops the object; unpickled copies only read it."""

    def __init__(self, url: str, disk_cache: int = DISK_CACHE) -> None:
        self.url = url
        self.block_cache = BlockCache(url.rstrip("/").rpartition("/")[2], disk_cache)

    @classmethod
    def temporary(cls, disk_cache: int = DISK_CACHE) -> "RowStore":
        """Create a store in this machine's folder for temporary files."""
        store = cls(tempfile.mkdtemp(prefix="rayfuse-rows-"), disk_cache)
        weakref.finalize(store, shutil.rmtree, store.url, ignore_errors=True)
        return store

    @classmethod
    def create_in(cls, parent: str, disk_cache: int = DISK_CACHE) -> "RowStore":
        """Create a store in a new folder below a URL, and remove the stores of killed processes there."""
        fs, path = fsspec.url_to_fs(parent)
        name = uuid4().hex
        store = cls(f"{parent}/{name}", disk_cache)
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
        weakref.finalize(self, release_shared, lock_shared(folder), parent)
        with lock_exclusive(parent / f"{folder.name}.copying"):
            if not folder.is_dir():
                partial = tempfile.mkdtemp(prefix="copying-", dir=parent)
                fs.get(f"{path}/", f"{partial}/", recursive=True)
                Path(partial).rename(folder)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "block_cache": self.block_cache}


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _remove_local(lock: IO[bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.name).unlink(missing_ok=True)
    lock.close()


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
        self._row_group_ends = row_group_ends(file) if has_blocks(file) else ()
        self._batch: list[tuple[int, str, list[bytes], int, int]] = []
        self._batch_bytes = self._shard_bytes = 0
        self._batch_sizes: list[int] = []

    def write(self, row: Row) -> None:
        """Add a row. Raises DataError for a value of an unsupported type."""
        values, embedded, row_group = row.values, 0, -1
        if self._row_group_ends:
            values, embedded = detach_files(values)
            row_group = bisect_right(self._row_group_ends, row.line - 1) if embedded else -1
        text, contents = encode_values(values, row.origin)
        self._batch.append((row.line, text, contents, row_group, embedded))
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
            [
                ("line", pa.int64()),
                ("values", pa.large_utf8()),
                ("contents", pa.list_(pa.large_binary())),
                ("row_group", pa.int32()),
                ("embedded_bytes", pa.int64()),
            ]
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


def _missing_rows_error(path: Path | str) -> ResourceError:
    return ResourceError(
        f"{path}: the stored rows do not exist any more: they were removed, or their storage unmounted, during the run; "
        "run the same command again"
    )


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
        self._open_shards: dict[int, MappedTable] = {}
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
        url = f"{self.store.url}/{self.split}.{name}"
        try:
            numbers = np.frombuffer(read_file(url), self._column_dtypes[name])
        except FileNotFoundError:
            raise _missing_rows_error(url) from None
        chosen = self._chosen
        return numbers if chosen == range(len(numbers)) else numbers[np.array(chosen, dtype=np.int64)]

    def set_column(self, name: str, file: Path, dtype: np.dtype[Any]) -> None:
        """Move a file SPLIT.NAME with one entry of `dtype` per valid row of the split into the store."""
        self.store.put(file)
        self._column_dtypes[name] = dtype

    def blocks(self) -> Blocks | None:
        """Return where the files inside these rows are; None if there are none."""
        keys: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        files = {file: number for number, file in enumerate(dict.fromkeys(s.file for s in self.shards))}
        for shard, batch in self._batches:
            table = self._open(shard)
            group = table.column(batch, "row_group").to_numpy().astype(np.int64)
            keys.append(np.where(group < 0, -1, group + (files[self.shards[shard].file] << 32)))
            sizes.append(table.column(batch, "embedded_bytes").to_numpy())
        valid = np.array(self._chosen, dtype=np.int64)
        stored = valid + np.searchsorted(self._valid_before, valid, side="right")
        chosen, num_bytes = np.concatenate(keys)[stored], np.concatenate(sizes)[stored]
        if not num_bytes.any():
            return None
        ids = np.unique(chosen, return_inverse=True)[1].astype(np.int32)
        return Blocks(ids, np.bincount(ids, weights=num_bytes).astype(np.int64))

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
        return self._decode(shard, self._open(shard).row(batch, stored - start))

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
            records = self._open(shard).rows(batch, start - begin, stop - begin)
            for stored, record in enumerate(records, start):
                if stored not in invalid:
                    yield self._decode(shard, record)

    def _decode(self, shard: int, record: Mapping[str, Any]) -> Row:
        file, line = self.shards[shard].file, record["line"]

        def attach(path: ColumnPath) -> EmbeddedFile:
            return EmbeddedFile(path, file, line - 1, self.store.block_cache)

        return Row(decode_values(record["values"], record["contents"], attach), file, line)

    def _to_stored_index(self, valid: int) -> int:
        """Return the stored index of a valid row."""
        return valid + int(np.searchsorted(self._valid_before, valid, side="right"))

    def _open(self, shard: int) -> MappedTable:
        mapped = self._open_shards.get(shard)
        if mapped is None:
            with self._opening:
                if len(self._open_shards) >= _MAX_OPEN_SHARDS:
                    del self._open_shards[next(iter(self._open_shards))]  # closed when no thread reads it
                mapped = self._map(self.store.local_path / f"{self.shards[shard].name}{_SUFFIX}")
                self._open_shards[shard] = mapped
        return mapped

    def _map(self, path: Path) -> MappedTable:
        try:
            return MappedTable(path)
        except FileNotFoundError:
            raise _missing_rows_error(path) from None

    def _view(self, chosen: range) -> "RowDataset":
        view = RowDataset.__new__(RowDataset)
        view.__dict__ |= self.__dict__ | {"_chosen": chosen}
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_opening": threading.Lock()}

"""Rows on disk: written once in shards, read by their number, so that memory does not depend on how many there are.

    STORE/SHARD.rows     records, one after the other (see rayfuse.data.records)
    STORE/SHARD.index    uint64 (rows + 1,): where each record begins, and where the last one ends
    STORE/SPLIT.NAME     a number for each usable row of a split, such as its length

A store lies on a folder that all workers reach. Where that is no local folder, each machine copies it once to its own
disk. Records are read, not mapped: mapped pages count as memory of the process.
"""

import os
import shutil
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import IO, Any, overload
from uuid import uuid4

import fsspec
import numpy as np

from rayfuse.data.leases import clear_unused, hold, hold_alone
from rayfuse.data.records import decode, encode
from rayfuse.data.rows import Row

_ENDINGS = (".rows", ".index")
_SHARD_BYTES = 256 << 20
_MOST_OPEN = 64
_BUFFER = 1 << 18
_INDEX_ENTRIES = 4096


@dataclass(frozen=True)
class Shard:
    """Rows of one split and one file: the shard's name, the file and how many rows there are."""

    name: str
    file: str
    rows: int


class Store:
    """The folder of a store. It is removed when the process that made it no longer needs it; copies only read it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def temporary(cls) -> "Store":
        """A store on this machine's disk for temporary files."""
        store = cls(tempfile.mkdtemp(prefix="rayfuse-rows-"))
        weakref.finalize(store, shutil.rmtree, store.url, ignore_errors=True)
        return store

    @classmethod
    def below(cls, parent: str) -> "Store":
        """A store in a folder of its own below the folder at a URL; those of killed processes are removed there."""
        fs, path = fsspec.url_to_fs(parent)
        name = uuid4().hex
        store = cls(f"{parent}/{name}")
        if _is_local(fs):
            clear_unused(Path(path))
            weakref.finalize(store, _give_up, hold(Path(path, name)), Path(path, name))
            store.url = f"{path}/{name}"
        else:
            weakref.finalize(store, _remove, store.url)
        fs.makedirs(f"{path}/{name}", exist_ok=True)
        return store

    @cached_property
    def here(self) -> Path:
        """The store as a folder of this machine."""
        fs, path = fsspec.url_to_fs(self.url)
        return Path(path) if _is_local(fs) else self._copied(fs, path)

    def put(self, file: Path) -> None:
        """Move a local file into the store."""
        fs, path = fsspec.url_to_fs(self.url)
        if _is_local(fs):
            shutil.move(file, Path(path, file.name))
        else:
            fs.put_file(str(file), f"{path}/{file.name}")

    def scratch(self) -> "tempfile.TemporaryDirectory[str]":
        """A folder for files that are to be put into the store."""
        fs, path = fsspec.url_to_fs(self.url)
        return tempfile.TemporaryDirectory(prefix="writing-", dir=path if _is_local(fs) else None)

    def _copied(self, fs: Any, path: str) -> Path:
        """This machine's copy; the first process makes it, the others wait for it."""
        parent = Path(tempfile.gettempdir(), f"rayfuse-rows-{os.getuid()}")
        parent.mkdir(exist_ok=True)
        clear_unused(parent)
        folder = parent / self.url.rstrip("/").rpartition("/")[2]
        weakref.finalize(self, _leave, hold(folder), parent)
        with hold_alone(parent / f"{folder.name}.copying"):
            if not folder.is_dir():
                partial = tempfile.mkdtemp(prefix="copying-", dir=parent)
                fs.get(f"{path}/", f"{partial}/", recursive=True)
                Path(partial).rename(folder)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _give_up(lock: IO[bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.name).unlink(missing_ok=True)
    lock.close()


def _leave(lock: IO[bytes], parent: Path) -> None:
    """Give up this machine's copy, which goes with the last process that reads it."""
    lock.close()
    clear_unused(parent)


def _remove(url: str) -> None:
    with suppress(Exception):  # each store has its own errors; what is left harms nobody
        fs, path = fsspec.url_to_fs(url)
        fs.rm(path, recursive=True)


class ShardWriter:
    """Writes the rows of one file and split to a store, a shard at a time."""

    def __init__(self, store: Store, prefix: str, file: str) -> None:
        self.shards: list[Shard] = []
        self._store, self._prefix, self._file = store, prefix, file
        self._open: ExitStack | None = None
        self._rows = self._end = 0

    def write(self, row: Row) -> None:
        record = encode(row.line, row.values, row.origin)
        if self._open is None:
            self._begin()
        self._records.write(record)
        self._rows, self._end = self._rows + 1, self._end + len(record)
        self._index.write(self._end.to_bytes(8, "little"))
        if self._end >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Put what was written into the store."""
        if self._open is None:
            return
        with self._open:
            self._records.close()
            self._index.close()
            for file in self._folder.iterdir():
                self._store.put(file)
        self.shards.append(Shard(self._name, self._file, self._rows))
        self._open = None

    @property
    def _name(self) -> str:
        return f"{self._prefix}-{len(self.shards):05d}"

    def _begin(self) -> None:
        self._open = ExitStack()
        self._folder = Path(self._open.enter_context(self._store.scratch()))
        files = [open(self._folder / f"{self._name}{end}", "wb") for end in _ENDINGS]  # noqa: SIM115 - `close` does
        self._records, self._index = map(self._open.enter_context, files)
        self._rows = self._end = 0
        self._index.write(bytes(8))


class Rows(Sequence[Row]):
    """Rows of a split in a store, without those at the sorted stored numbers `bad`; cheap to copy to other processes.

    A slice is a view.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[Shard],
        split: str = "",
        bad: np.ndarray | None = None,
        chosen: range | None = None,
    ) -> None:
        self.store, self.shards, self.split = store, list(shards), split
        self._ends = list(accumulate(shard.rows for shard in shards))
        bad = np.empty(0, np.int64) if bad is None else bad
        self._skips = bad - np.arange(len(bad))  # usable rows before each bad one
        self._chosen = range(self.stored - len(bad)) if chosen is None else chosen
        self._notes: dict[str, np.dtype[Any]] = {}
        self._files: dict[int, tuple[IO[bytes], IO[bytes]]] = {}
        self._opening = threading.Lock()

    @property
    def stored(self) -> int:
        """Stored rows, with the bad ones."""
        return self._ends[-1] if self._ends else 0

    def without(self, bad: np.ndarray) -> "Rows":
        """The rows but those at some sorted numbers of all that are stored."""
        return Rows(self.store, self.shards, self.split, bad)

    def noted(self, name: str) -> np.ndarray | None:
        """Numbers that were noted, one for each of these rows; None where there are none.

        Not from this machine's copy, which may have been made before.
        """
        if name not in self._notes:
            return None
        with fsspec.open(f"{self.store.url}/{self.split}.{name}", "rb") as file:
            numbers = np.frombuffer(file.read(), self._notes[name])
        chosen = self._chosen
        return numbers if chosen == range(len(numbers)) else numbers[np.array(chosen, dtype=np.int64)]

    def note(self, name: str, file: Path, dtype: np.dtype[Any]) -> None:
        """Move a file SPLIT.NAME, with a number for each row of the split, to them."""
        self.store.put(file)
        self._notes[name] = dtype

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> "Rows": ...

    def __getitem__(self, number: int | slice) -> "Row | Rows":
        if isinstance(number, slice):
            return self._view(self._chosen[number])
        stored = self._stored(self._chosen[index(number)])
        place = bisect_right(self._ends, stored)
        begin = self._ends[place - 1] if place else 0
        records, places = self._open(place)
        start, end = np.frombuffer(os.pread(places.fileno(), 16, 8 * (stored - begin)), np.uint64).tolist()
        return self._row(place, os.pread(records.fileno(), end - start, start))

    def __iter__(self) -> Iterator[Row]:
        if self._chosen.step != 1 or not self._chosen:
            yield from (self[number] for number in range(len(self)))
            return
        wanted = self._stored(self._chosen.start)
        skips = {int(skip + place) for place, skip in enumerate(self._skips)}
        left = len(self)
        for place, end in enumerate(self._ends):
            begin = end - self.shards[place].rows
            if end <= wanted or not left:
                continue
            for stored, record in self._records(place, max(0, wanted - begin)):
                if begin + stored in skips:
                    continue
                yield self._row(place, record)
                left -= 1
                if not left:
                    return

    def _records(self, place: int, first: int) -> Iterator[tuple[int, bytes]]:
        """The records of a shard from number `first` on, read in large pieces."""
        path = self.store.here / self.shards[place].name
        with path.with_name(f"{path.name}.rows").open("rb", buffering=_BUFFER) as records:
            for begin in range(first, self.shards[place].rows, _INDEX_ENTRIES):
                count = min(_INDEX_ENTRIES, self.shards[place].rows - begin)
                places = np.fromfile(f"{path}.index", np.uint64, count + 1, offset=8 * begin).tolist()
                if begin == first:
                    records.seek(places[0])
                for number in range(count):
                    yield begin + number, records.read(places[number + 1] - places[number])

    def _row(self, place: int, record: bytes) -> Row:
        line, values = decode(record)
        return Row(values, self.shards[place].file, line)

    def _stored(self, usable: int) -> int:
        """The stored number of a usable row."""
        return usable + int(np.searchsorted(self._skips, usable, side="right"))

    def _open(self, place: int) -> tuple[IO[bytes], IO[bytes]]:
        files = self._files.get(place)
        if files is None:
            with self._opening:
                if len(self._files) >= _MOST_OPEN:  # one in use by another thread is closed when that is done
                    del self._files[next(iter(self._files))]
                path = self.store.here / self.shards[place].name
                records = path.with_name(f"{path.name}.rows").open("rb", buffering=0)
                files = (records, path.with_name(f"{path.name}.index").open("rb", buffering=0))
                self._files[place] = files
        return files

    def _view(self, chosen: range) -> "Rows":
        view = Rows.__new__(Rows)
        view.__dict__ |= self.__dict__ | {"_chosen": chosen}
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_opening": threading.Lock()}

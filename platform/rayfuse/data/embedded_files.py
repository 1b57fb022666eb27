"""Files inside the rows of parquet: rows keep references, and bytes are read through a bounded cache on local disk.

A block is a row group of one file. Its files are read from the row group once and written to an Arrow IPC file, from
which single rows are read through a memory map. The least recently used blocks are removed to stay within the limit.
"""

import hashlib
import os
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from rayfuse.data.file_locks import lock_exclusive, lock_shared, release_shared
from rayfuse.data.files import normalized_url, open_for_random_access
from rayfuse.data.memory_map import MappedTable
from rayfuse.errors import DataError
from rayfuse.formatting import format_bytes

ColumnPath = tuple[str | int, ...]
"""Column, keys of mappings and positions in lists that lead to a value of a row."""

MIN_EMBEDDED_BYTES = 1024
"""Shorter contents are kept in the row itself."""
_SUFFIX = ".arrow"
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
_MAX_OPEN_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """A file inside a row of a parquet file."""

    path: ColumnPath
    """Its place in the row."""
    file: str = ""
    """URL of the parquet file."""
    row: int = 0
    """Number of the row in the parquet file, from 0."""
    cache: "BlockCache | None" = field(default=None, compare=False, repr=False)
    """The cache that it is read through."""

    def read(self) -> bytes:
        """Return the content. Raises DataError if the block does not fit into the cache or cannot be read."""
        assert self.cache is not None
        value: Any = self.cache.read_row(self.file, self.row)
        for key in self.path:
            value = value[key]
        content: bytes = value
        return content


def has_blocks(file: str) -> bool:
    """Return whether single rows of a file can be read later: over HTTP, parts of a file may not be available."""
    return normalized_url(file).endswith(".parquet") and not file.startswith(("http://", "https://"))


def detach_files(values: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Replace the contents of files in a row by references; return the row and the bytes that it no longer holds."""
    removed = 0

    def detach(value: Any, path: ColumnPath) -> Any:
        nonlocal removed
        if isinstance(value, bytes) and len(value) >= MIN_EMBEDDED_BYTES:
            removed += len(value)
            return EmbeddedFile(path)
        if isinstance(value, dict):
            return {key: detach(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], (bytes, dict, list, type(None))):
            return [detach(inner, (*path, place)) for place, inner in enumerate(value)]
        return value

    return {name: detach(value, (name,)) for name, value in values.items()}, removed


class BlockCache:
    """Blocks of parquet files on this machine's disk, shared by its processes; at most `max_bytes` in all.

    The folder is removed when no process of this machine uses it any more. Unpickled copies open it at first access.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name, self.max_bytes = name, max_bytes
        self._open: OrderedDict[tuple[str, int], MappedTable] = OrderedDict()
        self._lock = threading.Lock()
        self._folder: Path | None = None

    def read_row(self, file: str, row: int) -> dict[str, Any]:
        """Return the columns with files of a row. Raises DataError if the block does not fit or cannot be read."""
        ends = row_group_ends(file)
        group = bisect_right(ends, row)
        start = ends[group - 1] if group else 0
        return self._block(file, group).row(*divmod(row - start, _BATCH_ROWS))

    @property
    def folder(self) -> Path:
        """Folder of this machine with the blocks; it is locked for this process."""
        if self._folder is None:
            folder = Path(tempfile.gettempdir(), f"rayfuse-rows-{os.getuid()}", f"{self.name}-blocks")
            weakref.finalize(self, release_shared, lock_shared(folder), folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = folder
        return self._folder

    def _block(self, file: str, group: int) -> MappedTable:
        key = file, group
        with self._lock:
            block = self._open.get(key)
            if block is None:
                block = self._open[key] = self._map(file, group)
                if len(self._open) > _MAX_OPEN_BLOCKS:
                    self._open.popitem(last=False)  # unmapped when no thread reads it
            self._open.move_to_end(key)
        return block

    def _map(self, file: str, group: int) -> MappedTable:
        name = hashlib.blake2b(f"{group} {file}".encode(), digest_size=16).hexdigest()
        path = self.folder / f"{name}{_SUFFIX}"
        while True:
            with suppress(FileNotFoundError):  # removed by another process in this moment
                os.utime(path)
                return MappedTable(path)
            self._extract(file, group, path)

    def _extract(self, file: str, group: int, path: Path) -> None:
        """Write the files of a block to `path`, whose place on the disk is reserved first."""
        import pyarrow as pa

        with ExitStack() as stack:
            parquet = _open_parquet(stack, file)
            columns = _columns_with_files(parquet.schema_arrow)
            partial = self._reserve(_num_bytes(parquet.metadata, group, columns), file)
            stack.callback(partial.unlink, missing_ok=True)
            try:
                batches = parquet.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
                )
                schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])
                with pa.OSFile(str(partial), "wb") as target, pa.ipc.new_file(target, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{file}: row group {group} cannot be read: {error}") from None
            self._check_size(partial.stat().st_size, file)
            partial.rename(path)
        with lock_exclusive(self.folder / "reserving"):
            self._make_room(0)  # parquet may store equal files of a row group once

    def _reserve(self, size: int, file: str) -> Path:
        """Create a file of `size` bytes, and remove the least recently used blocks if the limit requires it."""
        self._check_size(size, file)
        self.folder.mkdir(parents=True, exist_ok=True)  # a cleaner of temporary files may have removed it
        with lock_exclusive(self.folder / "reserving"):
            self._make_room(size)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
            os.truncate(handle, size)
            os.close(handle)
        return Path(name)

    def _check_size(self, size: int, file: str) -> None:
        if size > self.max_bytes:
            raise DataError(
                f"{file}: a row group has {format_bytes(size)} of embedded files, above compute.disk_cache "
                f"({format_bytes(self.max_bytes)}); raise it, or write the file with smaller row groups"
            )

    def _make_room(self, size: int) -> None:
        """Remove the least recently used blocks until `size` more bytes are within the limit."""
        files = sorted(self._files())
        used = sum(num_bytes for _, num_bytes, _ in files)
        for _, num_bytes, path in files:
            if used + size <= self.max_bytes:
                break
            if path.suffix == _SUFFIX:
                path.unlink(missing_ok=True)
                used -= num_bytes

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield the time of the last use, the bytes and the path of each block and reservation."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # a reservation that another thread renames in this moment
                found = path.stat()
                yield found.st_mtime_ns, found.st_size, path

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@lru_cache(maxsize=1024)
def row_group_ends(file: str) -> tuple[int, ...]:
    """Return the number of rows up to the end of each row group of a parquet file."""
    with ExitStack() as stack:
        metadata = _open_parquet(stack, file).metadata
        return tuple(
            accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        )


def _open_parquet(stack: ExitStack, file: str) -> Any:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        content = stack.enter_context(open_for_random_access(file))
        return pq.ParquetFile(content, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read again: {error}") from None


def _columns_with_files(schema: Any) -> list[str]:
    return [field.name for field in schema if _holds_binary(field.type)]


def _holds_binary(kind: Any) -> bool:
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_holds_binary(kind.field(place).type) for place in range(kind.num_fields))


def _num_bytes(metadata: Any, group: int, columns: Iterable[str]) -> int:
    """Return the uncompressed bytes of some columns of a row group."""
    row_group, wanted = metadata.row_group(group), set(columns)
    chunks = (row_group.column(place) for place in range(row_group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)

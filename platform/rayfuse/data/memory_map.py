"""Memory maps of Arrow IPC files, from which single rows are read."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

READS_PER_RELEASE = 16
"""Reads between two releases of the mapped pages."""


class MappedTable:
    """Memory map of an Arrow IPC file. Mapped pages are dropped every few reads, and read again from the page cache."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._num_reads = 0

    def row(self, batch: int, row: int) -> dict[str, Any]:
        """Return the values of a row of a record batch by column."""
        found = self._read(batch)
        return {
            name: column[row].as_py() for name, column in zip(found.schema.names, found.columns, strict=True)
        }

    def rows(self, batch: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield the rows `start` to `stop` of a record batch."""
        yield from self._read(batch).slice(start, stop - start).to_pylist()

    def column(self, batch: int, name: str) -> "pa.Array":
        """Return a column of a record batch."""
        return self._read(batch).column(name)

    def _read(self, batch: int) -> "pa.RecordBatch":
        self._num_reads += 1
        if self._num_reads % READS_PER_RELEASE == 0:
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._reader.get_batch(batch)

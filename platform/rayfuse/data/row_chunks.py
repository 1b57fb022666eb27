"""Chunks of the rows of data files, which are read, predicted and written as a whole."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rayfuse.data.files import filesystem, without_sheet
from rayfuse.data.formats.sql import is_database
from rayfuse.data.readers import is_folder, read_rows
from rayfuse.data.records import decode_values, encode_values
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat, CellType, cell_parser

CHUNK_ROWS = 512
"""Rows of a chunk, at most."""
CHUNK_BYTES = 64 << 20
"""Bytes of texts and files in the rows of a chunk, above which it ends."""
_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class RowChunk:
    """Consecutive rows of a file."""

    name: str
    """FILE-CHUNK: numbers from 0, in the order of the data."""
    rows: Sequence[Row | InvalidRow]
    """Rows, and invalid lines."""

    def to_record(self) -> dict[str, Any]:
        """Return the chunk as a row of Arrow."""
        rows = [
            [row.origin, row.reason] if isinstance(row, InvalidRow) else [row.values, row.file, row.line]
            for row in self.rows
        ]
        text, contents = encode_values({"rows": rows}, self.name)
        return {"name": self.name, "text": text, "contents": contents}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the chunk that `to_record` has converted."""
        rows = decode_values(record["text"], list(record["contents"]))["rows"]
        return cls(record["name"], [Row(*row) if len(row) == 3 else InvalidRow(*row) for row in rows])


@dataclass(frozen=True)
class RowFiles:
    """Data files, as chunks that are the same at every time."""

    files: tuple[str, ...]
    """Paths or URLs."""
    cells: Mapping[str, CellType]
    """Columns that a model reads → how their cells are parsed in a csv file."""
    cell_format: CellFormat = field(default_factory=CellFormat)
    """Marks in the cells."""

    def read(self, skip: Collection[str] = (), only: int | None = None) -> Iterator[RowChunk]:
        """Yield the chunks of all files, or of the file with the number `only`, except those with a name in `skip`.

        Raises DataError if a file is empty or incomplete, UnavailableError if its store does not respond.
        """
        for number in range(len(self.files)) if only is None else [only]:
            for count, rows in enumerate(self._chunks(self.files[number])):
                name = f"{number:05d}-{count:06d}"
                if name not in skip:
                    yield RowChunk(name, rows)

    def first_rows(self) -> Sequence[Row | InvalidRow]:
        """Return the rows of the first chunk. Raises DataError if there is none."""
        for chunk in self.read():
            return chunk.rows
        raise DataError(f"{self.files[0]}: no rows")

    def estimate_rows(self, skip: Collection[str] = ()) -> int | None:
        """Return about the number of rows, except those of the chunks `skip`, without parsing them.

        None if a file is remote or of another type.
        """
        found = [_estimate_rows(file) for file in self.files]
        return None if None in found else sum(filter(None, found)) - CHUNK_ROWS * len(skip)

    def versions(self) -> list[list[str]]:
        """Return marks of the content: the name of each file, its size, and its ETag or time."""
        marks = []
        for file in self.files:
            marks.append([file, *_version(file)])
        return [[str(CHUNK_ROWS), str(CHUNK_BYTES)], *marks]

    def _chunks(self, file: str) -> Iterator[list[Row | InvalidRow]]:
        rows: list[Row | InvalidRow] = []
        size = 0
        parsers = {column: cell_parser(kind, self.cell_format) for column, kind in self.cells.items()}
        for row in read_rows(file, parsers):
            rows.append(row)
            size += 0 if isinstance(row, InvalidRow) else size_of_values(row.values)
            if len(rows) == CHUNK_ROWS or size >= CHUNK_BYTES:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows


def _version(file: str) -> list[str]:
    """Return marks of a file's content; of a folder's, a hash of those of its files, and none of a database."""
    if is_database(file):
        return []
    fs, path = filesystem(without_sheet(file))
    keys = ("size", "ETag", "mtime", "LastModified")
    if is_folder(file):
        found = fs.find(path, detail=True).items()
        marks = [[name, *(str(info.get(key)) for key in keys)] for name, info in sorted(found)]
        return [hashlib.blake2b(json.dumps(marks).encode(), digest_size=16).hexdigest()]
    info = fs.info(path)
    return [str(info.get(key)) for key in keys]


def _estimate_rows(file: str) -> int | None:
    if "://" in file:
        return None
    if file.lower().endswith(_TEXT_SUFFIXES):
        with Path(file).open("rb") as content:
            lines = sum(block.count(b"\n") for block in iter(lambda: content.read(1 << 20), b""))
        return max(1, lines - file.lower().endswith((".csv", ".tsv")))
    if file.lower().endswith(".parquet"):
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)
    return None


def size_of_values(value: Any) -> int:
    """Return the bytes of all texts and contents of files in a value."""
    if isinstance(value, (bytes, str)):
        return len(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(size_of_values, items))

"""A bounded sample of rows, from which kinds of columns are inferred."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rayfuse.data.base64_values import decode_data_uri, is_data_uri
from rayfuse.data.files import data_suffix
from rayfuse.data.objects import to_raw_value
from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.tables import iter_rows
from rayfuse.errors import DataError, SpecError
from rayfuse.schema_inference.splits import urls_of
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import USUAL_MISSING_MARKS, CellFormat, parse_json

SAMPLE_ROWS = 10_000
"""Rows of the sample."""
_SCANNED_ROWS = 100_000
"""Rows that are read, over which the sample is spread."""
_SCANNED_BYTES = 500_000_000
"""Bytes of values after which no further rows are read."""
_MAX_FILES = 100
_OTHER_SPLIT_ROWS = 1_000
"""Rows of validation and test files that are read, for missing values."""
_MAX_TEXT_CHARS = 4_000
_UNTYPED_SUFFIXES = (".csv", ".tsv", ".xlsx")
_MISSING_MARKS = frozenset(USUAL_MISSING_MARKS)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The first bytes of a file inside a row, instead of its content."""

    start: bytes
    """Its first bytes, from which its format is recognized."""
    path: str | None
    """Its name, if it has one."""
    content: bytes | None
    """Its content, for the first rows only."""


@dataclass(frozen=True)
class Sample:
    """Sampled rows of a data set, with missing cells as None."""

    columns: dict[str, list[Any]]
    """Values by column, in the order of the rows."""
    num_rows: int
    """Rows that were read."""
    is_complete: bool
    """True if these are all rows."""
    is_untyped: bool
    """True if the cells are texts, as in csv."""
    folder: str
    """Folder of the first file, to which relative paths of its rows refer."""
    cells: CellFormat = field(default_factory=CellFormat)
    """Marks in the cells of csv files."""

    @property
    def size(self) -> int:
        """Number of sampled rows."""
        return len(next(iter(self.columns.values()), []))

    @property
    def description(self) -> str:
        """Number of rows, for people."""
        if self.is_complete and self.size == self.num_rows:
            return f"{self.num_rows:,} rows"
        return f"{self.size:,} of {'' if self.is_complete else 'more than '}{self.num_rows:,} rows"


def read_sample(rows: Any, limit: int = SAMPLE_ROWS) -> Sample:
    """Read a sample of the rows at a URL, or of a table in memory: evenly at random from its first rows.

    Raises SpecError if there are no rows or a file cannot be read.
    """
    urls = urls_of(rows)
    if urls is None:
        found = (Row(dict(values), "", number) for number, values in enumerate(iter_rows(rows), start=1))
        return _sample(found, "the table", limit, False, str(Path.cwd()), True)
    try:
        files = list_data_files(urls)
        chosen = files[:: -(-len(files) // _MAX_FILES)]
        stream = _read_files(chosen, None if len(files) == 1 else _SCANNED_ROWS // len(chosen))
        untyped = data_suffix(files[0]) in _UNTYPED_SUFFIXES
        folder = Row({}, files[0], 1).folder
        return _sample(stream, files[0], limit, untyped, folder, len(chosen) == len(files))
    except DataError as error:
        raise SpecError(str(error)) from None


def read_head(urls: Any) -> Sample:
    """Read the first rows of a split. Raises SpecError as `read_sample` does."""
    return read_sample(urls, _OTHER_SPLIT_ROWS)


def _read_files(files: list[str], limit: int | None) -> Iterator[Row | InvalidRow]:
    for file in files:
        yield from islice(read_rows(file), limit)


def _sample(
    rows: Iterable[Row | InvalidRow], name: str, limit: int, untyped: bool, folder: str, all_files: bool
) -> Sample:
    """Choose rows by reservoir sampling (Vitter, 1985), with a fixed seed."""
    rng = random.Random(0)
    chosen: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    number = scanned = 0
    problem: InvalidRow | None = None
    is_complete = all_files
    for row in rows:
        if isinstance(row, InvalidRow):
            problem = problem or row
            continue
        if number >= _SCANNED_ROWS * limit // SAMPLE_ROWS or scanned > _SCANNED_BYTES:
            is_complete = False
            break
        columns |= dict.fromkeys(row.values)
        place = number if number < limit else rng.randrange(number + 1)
        scanned += sum(map(_size, row.values.values()))
        if place < limit:
            values = {column: _reduce(value, untyped, place < 20) for column, value in row.values.items()}
            chosen[place : place + 1] = [(number, values)]
        number += 1
    if not chosen:
        raise SpecError(f"{name}: no valid row; {problem}" if problem else f"{name}: no rows")
    chosen.sort(key=lambda pair: pair[0])
    return Sample(
        {column: [values.get(column) for _, values in chosen] for column in columns},
        number,
        is_complete,
        untyped,
        folder,
    )


def _reduce(value: Any, untyped: bool, keep: bool) -> Any:
    """Return a value without the contents of files, a missing one as None, and a list in a csv cell parsed."""
    value = to_raw_value(value, is_media=True)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return Embedded(value[:64], None, value if keep else None)
    if isinstance(value, Mapping):
        return _reduce_mapping(value, untyped, keep)
    if isinstance(value, (list, tuple)):
        return [_reduce(item, False, keep) for item in value]
    return _reduce_text(value, untyped, keep) if isinstance(value, str) else value


def _reduce_mapping(value: Mapping[str, Any], untyped: bool, keep: bool) -> Any:
    if {"bytes", "path"} >= value.keys():
        content, path = value.get("bytes"), value.get("path")
        if not content:
            return path or None
        return Embedded(content[:64], path, content if keep else None)
    return {key: _reduce(inner, untyped, keep) for key, inner in value.items()} or None


def _reduce_text(text: str, untyped: bool, keep: bool) -> Any:
    if is_data_uri(text):
        try:
            content = decode_data_uri(text)
        except ValueError:
            return text[:_MAX_TEXT_CHARS]
        return Embedded(content[:64], None, content if keep else None)
    if untyped:
        if text.strip() in _MISSING_MARKS:
            return None
        if text.lstrip()[:1] in ("[", "{"):
            return _reduce(parse_json(text), False, keep) if not isinstance(parse_json(text), str) else text
    return text[:_MAX_TEXT_CHARS]


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) * _size(value[0]) if value else 0
    return 8

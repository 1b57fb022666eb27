"""Readers of rows from jsonl, csv or parquet at any fsspec URL: a file, a glob or a folder.

Rows are streamed: memory does not depend on their number.
"""

import csv
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO

from rayfuse.data.files import filesystem, normalized_url, open_url, to_read_error
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.formatting import first_line
from rayfuse.spec.tasks import CellType

CellParser = Callable[[str], Any]
"""Parser of the text of a csv cell."""

_PARQUET_BATCH_ROWS = 256
"""Rows of a parquet file in memory at a time."""
_BUFFER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def int_or_str(cell: str) -> int | str:
    """Parse a whole number without leading zeros, else return the text: `007` is a code."""
    return int(cell) if _INTEGER.fullmatch(cell) and len(cell) < 20 else cell


def float_or_str(cell: str) -> float | str:
    """Parse a number, else return the text."""
    return float(cell) if _NUMBER.fullmatch(cell) else cell


def json_or_str(cell: str) -> Any:
    """Parse a list or mapping in JSON, else return the text."""
    if cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


CELL_PARSERS: dict[CellType, CellParser] = {
    "int": int_or_str,
    "float": float_or_str,
    "json": json_or_str,
    "str": str,
}
"""Parsers of the text of a csv cell, by the type of its column."""


def read_rows(file: str, cell_parsers: Mapping[str, CellParser] | None = None) -> Iterator[Row | InvalidRow]:
    """Yield the rows of a file in the order of its lines, and its invalid lines.

    The cells of csv are texts, except in the columns of `cell_parsers`; empty cells are null. A cell's type depends on
    the cell alone, so that it is the same in every file. Raises DataError if the file is empty or incomplete,
    UnavailableError if its store does not respond.
    """
    reader = _reader_for(file)
    with open_url(file) as content:
        yield from reader(file, content, cell_parsers or {})


def list_data_files(url: str) -> list[str]:
    """Return the files that a URL, glob or folder names, sorted. Raises DataError if there is none."""
    fs, path = filesystem(url)
    try:
        if _suffix(url) in READERS and fs.isfile(path):
            return [url]
        if any(sign in path for sign in "*?["):
            found = sorted(map(str, fs.glob(path)))
            problem = "no file matches"
        elif fs.isdir(path):
            found = sorted(name for name in fs.ls(path, detail=False) if _suffix(name) in READERS)
            problem = f"the folder has no {', '.join(READERS)} file"
        else:
            return [url]
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise to_read_error(url, error) from None
    if not found:
        raise DataError(f"{url}: {problem}")
    return [str(fs.unstrip_protocol(name)) if "://" in url else name for name in found]


def _suffix(file: str) -> str:
    return "." + normalized_url(file).removesuffix(".gz").rsplit(".", 1)[-1]


def _reader_for(file: str) -> "Reader":
    try:
        return READERS[_suffix(file)]
    except KeyError:
        raise DataError(f"{file}: unsupported file type; use one of: {', '.join(READERS)}") from None


def _lines(file: str, content: BinaryIO) -> Iterator[str]:
    """Yield the lines with their ends. Raises DataError if the file is empty or not UTF-8."""
    before = 0
    empty = True
    for number, line in enumerate(content, start=1):
        empty = empty and not line.strip()
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            place = before + error.start
            raise DataError(f"{file}:{number}: not UTF-8 (byte {place}); save the file as UTF-8") from None
        before += len(line)
    if empty:
        raise DataError(f"{file}: the file is empty")


def _read_jsonl(
    file: str, content: BinaryIO, cell_parsers: Mapping[str, CellParser]
) -> Iterator[Row | InvalidRow]:
    for number, line in enumerate(_lines(file, content), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield InvalidRow(f"{file}:{number}", f"not JSON: {error}; write one object per line")
            continue
        if isinstance(values, dict):
            yield Row(values, file, number)
        else:
            yield InvalidRow(
                f"{file}:{number}",
                f"expected a JSON object, not {type(values).__name__}; write one object per line",
            )


def _read_csv(
    file: str, content: BinaryIO, cell_parsers: Mapping[str, CellParser]
) -> Iterator[Row | InvalidRow]:
    lines = csv.reader(_split_carriage_returns(_lines(file, content)), strict=True)
    header = _read_header(file, lines)
    while True:
        first = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV: {error}"
        else:
            fits = len(values) in (0, len(header))  # 0: an empty line
            problem = "" if fits else f"{len(values)} cells, the header has {len(header)}"
        if problem:  # an unclosed quote may span several lines, and each counts
            yield from (
                InvalidRow(f"{file}:{number}", problem) for number in range(first, lines.line_num + 1)
            )
        elif values:
            yield Row(_csv_values(header, values, cell_parsers), file, first)


def _split_carriage_returns(lines: Iterable[str]) -> Iterator[str]:
    """Split lines at carriage returns too, which end the lines of some old files."""
    for line in lines:
        yield from re.split(r"(?<=\r)(?!\n)(?!$)", line) if "\r" in line.rstrip("\r\n") else [line]


def _csv_values(
    header: list[str], values: list[str], cell_parsers: Mapping[str, CellParser]
) -> dict[str, Any]:
    return {
        name: cell_parsers.get(name, str)(value) if value else None
        for name, value in zip(header, values, strict=True)
    }


def _read_header(file: str, lines: Any) -> list[str]:
    try:
        header: list[str] = next((cells for cells in lines if cells), [])
    except csv.Error as error:
        raise DataError(f"{file}:{lines.line_num}: the header is not CSV: {error}") from None
    if not header:
        raise DataError(f"{file}: the file is empty")
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{file}:{lines.line_num}: {times} columns have the name `{name}`; rename all but one"
        )
    return header


def _read_parquet(
    file: str, content: BinaryIO, cell_parsers: Mapping[str, CellParser]
) -> Iterator[Row | InvalidRow]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    number = 0
    with ExitStack() as stack:
        if normalized_url(file).endswith(".gz"):  # its footer is at the end
            unpacked = stack.enter_context(tempfile.TemporaryFile(prefix="rayfuse-"))
            shutil.copyfileobj(content, unpacked)
            content = unpacked
        if not content.seek(0, 2):
            raise DataError(f"{file}: the file is empty")
        try:
            # By default, a reader buffers all pages of a row group, which may be the entire file.
            parquet = pq.ParquetFile(content, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, file, number)
        except (ArrowException, OSError, ValueError) as error:
            reason = first_line(str(error)).removesuffix(".")
            raise DataError(
                f"{file}: incomplete or corrupt parquet file: {reason}; write or upload it again"
            ) from None


Reader = Callable[[str, BinaryIO, Mapping[str, CellParser]], Iterator[Row | InvalidRow]]

READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

"""Read rows from jsonl, csv or parquet at any fsspec URL: a file, a glob or a folder.

Rows come one after the other: memory does not depend on how many there are.
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

from rayfuse.data.files import filesystem, name_of, opened, unreadable
from rayfuse.data.rows import BadRow, Row
from rayfuse.errors import DataError

Cell = Callable[[str], Any]
"""What a cell of text is read as."""

_BATCH = 256
"""Rows of a parquet file that are in memory at a time."""
_PAGE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_WHOLE = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def whole_or_text(cell: str) -> int | str:
    """A whole number as people write it, else the text: `007` is no number but a code."""
    return int(cell) if _WHOLE.fullmatch(cell) and len(cell) < 20 else cell


def number_or_text(cell: str) -> float | str:
    """A number, else the text."""
    return float(cell) if _NUMBER.fullmatch(cell) else cell


def json_or_text(cell: str) -> Any:
    """A list or a mapping in JSON, else the text."""
    if cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def read_rows(file: str, cells: Mapping[str, Cell] | None = None) -> Iterator[Row | BadRow]:
    """The rows of a file, in the order of its lines, and the lines that are no rows.

    csv has no types: its cells are texts, but for the columns in `cells`; empty ones are null. What a cell
    means depends on the cell alone, so that it is the same in every file.
    Raises DataError where the file is empty or cannot be read as a whole, NotReachable where its store does not answer.
    """
    reader = _reader(file)
    with opened(file) as content:
        yield from reader(file, content, cells or {})


def data_files(url: str) -> list[str]:
    """The files that a URL stands for, sorted by their names. Raises DataError where there is none."""
    fs, path = filesystem(url)
    try:
        if _suffix(url) in READERS and fs.isfile(path):
            return [url]
        if any(sign in path for sign in "*?["):
            found = sorted(map(str, fs.glob(path)))
            problem = "no file matches"
        elif fs.isdir(path):
            found = sorted(name for name in fs.ls(path, detail=False) if _suffix(name) in READERS)
            problem = f"the folder holds no {', '.join(READERS)} file"
        else:
            return [url]
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise unreadable(url, error) from None
    if not found:
        raise DataError(f"{url}: {problem}")
    return [str(fs.unstrip_protocol(name)) if "://" in url else name for name in found]


def _suffix(file: str) -> str:
    return "." + name_of(file).removesuffix(".gz").rsplit(".", 1)[-1]


def _reader(file: str) -> "Reader":
    try:
        return READERS[_suffix(file)]
    except KeyError:
        raise DataError(f"{file}: not a kind of data file; one of: {', '.join(READERS)}") from None


def _lines(file: str, content: BinaryIO) -> Iterator[str]:
    """The lines with their ends. Raises DataError where the file is empty or not UTF-8."""
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


def _read_jsonl(file: str, content: BinaryIO, cells: Mapping[str, Cell]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(_lines(file, content), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadRow(f"{file}:{number}", f"not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(values, file, number)
        else:
            yield BadRow(f"{file}:{number}", f"a JSON object belongs here, not {type(values).__name__}")


def _read_csv(file: str, content: BinaryIO, cells: Mapping[str, Cell]) -> Iterator[Row | BadRow]:
    lines = csv.reader(_at_returns(_lines(file, content)), strict=True)
    header = _header(file, lines)
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
        if problem:  # a stray quote may have swallowed several lines, and each counts
            yield from (BadRow(f"{file}:{number}", problem) for number in range(first, lines.line_num + 1))
        elif values:
            yield Row(_csv_values(header, values, cells), file, first)


def _at_returns(lines: Iterable[str]) -> Iterator[str]:
    """The lines cut at carriage returns too, which alone end lines in some old files."""
    for line in lines:
        yield from re.split(r"(?<=\r)(?!\n)(?!$)", line) if "\r" in line.rstrip("\r\n") else [line]


def _csv_values(header: list[str], values: list[str], cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {
        name: cells.get(name, str)(value) if value else None
        for name, value in zip(header, values, strict=True)
    }


def _header(file: str, lines: Any) -> list[str]:
    try:
        header: list[str] = next((cells for cells in lines if cells), [])
    except csv.Error as error:
        raise DataError(f"{file}:{lines.line_num}: the header is not CSV: {error}") from None
    if not header:
        raise DataError(f"{file}: the file is empty")
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file}:{lines.line_num}: {times} columns are called `{name}`; rename all but one")
    return header


def _read_parquet(file: str, content: BinaryIO, cells: Mapping[str, Cell]) -> Iterator[Row | BadRow]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    number = 0
    with ExitStack() as stack:
        if name_of(file).endswith(".gz"):  # the table of contents is at the end
            unpacked = stack.enter_context(tempfile.TemporaryFile(prefix="rayfuse-"))
            shutil.copyfileobj(content, unpacked)
            content = unpacked
        if not content.seek(0, 2):
            raise DataError(f"{file}: the file is empty")
        try:
            # Unless it is told so, a reader holds all pages of a row group, which may be the whole file.
            parquet = pq.ParquetFile(content, pre_buffer=False, buffer_size=_PAGE_BYTES)
            for batch in parquet.iter_batches(_BATCH, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, file, number)
        except (ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{file}: not a whole parquet file: {reason}; write or upload it again") from None


Reader = Callable[[str, BinaryIO, Mapping[str, Cell]], Iterator[Row | BadRow]]

READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

"""Read rows from jsonl, csv or parquet at any fsspec URL: a file, a glob or a folder."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rayfuse.data.files import filesystem, name_of, read_unpacked, unreadable
from rayfuse.data.rows import BadRow, Row
from rayfuse.errors import DataError

RowsAndBad = tuple[list[Row], list[BadRow]]
Cell = Callable[[str], Any]
"""What a cell of text is read as."""

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


def read_rows(url: str, cells: Mapping[str, Cell] | None = None) -> RowsAndBad:
    """All rows of `url` in the order of the files' names and lines, and the lines that are no rows.

    csv has no types: its cells are texts, but for the columns in `cells`; empty ones are null. What a cell
    means depends on the cell alone, so that it is the same in every file.
    Raises DataError where a file cannot be read as a whole, NotReachable where its store does not answer.
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    for file in _files(url):
        more, more_bad = _reader(file)(file, _content(file), cells or {})
        rows += more
        bad += more_bad
    if not rows and not bad:
        raise DataError(f"{url}: holds no rows")
    return rows, bad


def _files(url: str) -> list[str]:
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


def _content(file: str) -> bytes:
    content = read_unpacked(file)
    if not content.strip():
        raise DataError(f"{file}: the file is empty")
    return content


def _suffix(file: str) -> str:
    return "." + name_of(file).removesuffix(".gz").rsplit(".", 1)[-1]


def _reader(file: str) -> Callable[[str, bytes, Mapping[str, Cell]], RowsAndBad]:
    try:
        return READERS[_suffix(file)]
    except KeyError:
        raise DataError(f"{file}: not a kind of data file; one of: {', '.join(READERS)}") from None


def _decode(file: str, content: bytes) -> str:
    content = content.removeprefix(_BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None


def _read_jsonl(file: str, content: bytes, cells: Mapping[str, Cell]) -> RowsAndBad:
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, line in enumerate(_decode(file, content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(f"{file}:{number}", f"not JSON: {error}"))
            continue
        if isinstance(values, dict):
            rows.append(Row(values, file, number))
        else:
            reason = f"a JSON object belongs here, not {type(values).__name__}"
            bad.append(BadRow(f"{file}:{number}", reason))
    return rows, bad


def _read_csv(file: str, content: bytes, cells: Mapping[str, Cell]) -> RowsAndBad:
    lines = csv.reader(io.StringIO(_decode(file, content), newline=""), strict=True)
    header = _header(file, lines)
    rows: list[Row] = []
    bad: list[BadRow] = []
    while True:
        first = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return rows, bad
        except csv.Error as error:
            problem = f"not CSV: {error}"
        else:
            fits = len(values) in (0, len(header))  # 0: an empty line
            problem = "" if fits else f"{len(values)} cells, the header has {len(header)}"
        if problem:  # a stray quote may have swallowed several lines, and each counts
            bad += [BadRow(f"{file}:{number}", problem) for number in range(first, lines.line_num + 1)]
        elif values:
            rows.append(Row(_csv_values(header, values, cells), file, first))


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


def _read_parquet(file: str, content: bytes, cells: Mapping[str, Cell]) -> RowsAndBad:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        values = pq.read_table(io.BytesIO(content)).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file}: not a whole parquet file: {reason}; write or upload it again") from None
    return [Row(row, file, i) for i, row in enumerate(values, start=1)], []


READERS: dict[str, Callable[[str, bytes, Mapping[str, Cell]], RowsAndBad]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

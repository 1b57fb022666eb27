"""Rows of a sheet of an Excel workbook, read as a stream."""

import datetime
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO
from zipfile import BadZipFile

from rayfuse.data.files import sheet_of, unpacked
from rayfuse.data.formats.base import CellParsers, Rows
from rayfuse.data.formats.delimited import check_header
from rayfuse.data.rows import Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import parse_text
from rayfuse.spec.error_messages import suggest_nearest


def read_excel(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of the sheet that the URL names with `#sheet=NAME`, else of the first one.

    The first row that is not empty is the header; a column without a name is left out. Formulas have the values that
    Excel has stored.
    """
    with ExitStack() as stack:
        workbook = _open(file, stack.enter_context(unpacked(file, content)))
        stack.callback(workbook.close)
        rows = _filled(_sheet(file, workbook).iter_rows(values_only=True))
        line, cells = next(rows, (0, ()))
        header = {place: str(name).strip() for place, name in enumerate(cells) if not _is_empty(name)}
        if not header:
            raise DataError(f"{file}: the sheet is empty")
        check_header(f"{file}:{line}", list(header.values()))
        for line, cells in rows:
            found = {name: cells[place] if place < len(cells) else None for place, name in header.items()}
            yield Row({name: _parse(name, value, cell_parsers) for name, value in found.items()}, file, line)


def _open(file: str, content: BinaryIO) -> Any:
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise DataError(f"{file}: Excel files need openpyxl; `pip install 'rayfuse[excel]'`") from None
    try:
        return load_workbook(content, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError, ValueError) as error:
        raise DataError(f"{file}: not an Excel workbook: {error}; save it as .xlsx") from None


def _sheet(file: str, workbook: Any) -> Any:
    name = sheet_of(file)
    if name is None:
        return workbook.worksheets[0]
    known = {sheet.title: sheet for sheet in workbook.worksheets}
    if name not in known:
        raise DataError(f"{file}: no sheet `{name}`; {suggest_nearest(name, list(known))}")
    return known[name]


def _filled(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the rows that are not empty, and their numbers."""
    for line, cells in enumerate(rows, start=1):
        if not all(map(_is_empty, cells)):
            yield line, cells


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _parse(column: str, value: Any, cell_parsers: CellParsers) -> Any:
    """Return the value of a cell: a text is parsed as in csv, and a column of texts has no numbers or dates."""
    parse = cell_parsers.get(column)
    if parse is parse_text and isinstance(value, (int, float, datetime.date, datetime.time)):
        return str(value)
    if isinstance(value, str):
        return parse(value) if parse else value or None
    return value

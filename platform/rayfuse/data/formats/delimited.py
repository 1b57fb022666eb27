"""Rows of csv and tsv files: a header, and cells without types."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

from rayfuse.data.formats.base import CellParsers, Rows, read_lines
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import find_delimiter, split_cells

_SAMPLE_LINES = 32
_NAMED_DELIMITER = re.compile(r"sep=(.)\r?\n?")
"""First line that Excel writes to name the delimiter."""


def read_csv(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a csv file, whose delimiter is found from its first lines."""
    lines = read_lines(file, content)
    sample = list(islice(lines, _SAMPLE_LINES))
    named = _NAMED_DELIMITER.fullmatch(sample[0]) if sample else None
    if named:
        sample[0] = "\n"
    delimiter = named[1] if named else find_delimiter(sample)
    yield from _read(file, chain(sample, lines), delimiter, cell_parsers)


def read_tsv(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a file whose cells are separated by tabs."""
    yield from _read(file, read_lines(file, content), "\t", cell_parsers)


def check_header(origin: str, header: Sequence[str]) -> None:
    """Raise DataError if two columns have one name."""
    for name, times in Counter(header).most_common(1):
        if times > 1:
            raise DataError(f"{origin}: {times} columns have the name `{name}`; rename all but one")


def _read(file: str, text: Iterable[str], delimiter: str, cell_parsers: CellParsers) -> Rows:
    lines = split_cells(text, delimiter, strict=True)
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
            yield Row(_parse(header, values, cell_parsers), file, first)


def _parse(header: list[str], values: list[str], cell_parsers: CellParsers) -> dict[str, Any]:
    return {
        name: cell_parsers[name](value) if name in cell_parsers else value or None
        for name, value in zip(header, values, strict=True)
    }


def _read_header(file: str, lines: Any) -> list[str]:
    try:
        header: list[str] = next((cells for cells in lines if cells), [])
    except csv.Error as error:
        raise DataError(f"{file}:{lines.line_num}: the header is not CSV: {error}") from None
    if not header:
        raise DataError(f"{file}: the file is empty")
    check_header(f"{file}:{lines.line_num}", header)
    return header

"""Type of readers of all formats, and lines of text files."""

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellParser

Rows = Iterator[Row | InvalidRow]
"""Rows of a file in their order, and its invalid lines."""
CellParsers = Mapping[str, CellParser]
"""Columns → how cells without a type are parsed."""
Reader = Callable[[str, BinaryIO, CellParsers], Rows]
"""Reader of one format: takes the URL of a file, its uncompressed content and `cell_parsers`."""

_BOM = b"\xef\xbb\xbf"


def read_lines(file: str, content: BinaryIO) -> Iterator[str]:
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

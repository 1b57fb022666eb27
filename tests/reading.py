"""Rows of files, all at once: tests have few."""

from rayfuse.data.readers import Cell, data_files, read_rows
from rayfuse.data.rows import BadRow, Row


def read_all(url: str, cells: dict[str, Cell] | None = None) -> tuple[list[Row], list[BadRow]]:
    """The rows of all files of a URL, and the lines that are no rows."""
    found = [row for file in data_files(url) for row in read_rows(file, cells)]
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]

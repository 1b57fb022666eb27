"""Read all rows of files at once."""

from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.spec.cells import CellParser


def read_all(url: str, cells: dict[str, CellParser] | None = None) -> tuple[list[Row], list[InvalidRow]]:
    """Return the rows of all files of a URL, and the invalid rows."""
    found = [row for file in list_data_files(url) for row in read_rows(file, cells)]
    return [row for row in found if isinstance(row, Row)], [
        row for row in found if isinstance(row, InvalidRow)
    ]

"""Rows of WebDataset archives: consecutive files of a tar with one name before the first dot are a row.

    17.jpg, 17.cls, 17.json      {"__key__": "17", "jpg": b"…", "cls": 3, "caption": "a terrier"}

One row is in memory at a time.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO

from rayfuse.data.formats.base import CellParsers, Rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError

KEY = "__key__"
"""Column with the name that the files of a row share."""
_CELLS = ("cls", "cls2", "id", "index")
_TEXTS = ("text", "transcript", "txt")
_Member = tuple[str, str, bytes]


class _InvalidMemberError(Exception):
    """A file that cannot be decoded."""


def read_webdataset(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a tar. Columns: `__key__`, the suffix of each file, and the keys of a .json file.

    Labels (.cls) and texts (.txt) are decoded, other files are bytes.
    """
    for number, (key, members) in enumerate(groupby(_members(file, content), lambda one: one[0]), start=1):
        values: dict[str, Any] = {KEY: key}
        found = list(members)
        try:
            for _, suffix, data in found:
                _add(values, suffix, data, cell_parsers)
        except _InvalidMemberError as error:
            yield InvalidRow(f"{file}:{key}", str(error))
        else:
            yield Row(values, file, number)


def _members(file: str, content: BinaryIO) -> Iterator[_Member]:
    """Yield the key, the suffix and the content of each file, in the order of the archive."""
    try:
        with tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                opened = archive.extractfile(member) if member.isfile() and stem and dot else None
                if opened is not None and not folder.startswith("__MACOSX"):
                    yield folder + slash + stem, suffix.lower(), opened.read()
                archive.members = []  # type: ignore[attr-defined] # it grows with the archive
    except tarfile.TarError as error:
        raise DataError(
            f"{file}: incomplete or corrupt tar file: {error}; write or upload it again"
        ) from None


def _add(values: dict[str, Any], suffix: str, data: bytes, cell_parsers: CellParsers) -> None:
    """Add a file to a row. Raises _InvalidMemberError if it cannot be decoded."""
    if suffix in values:
        raise _InvalidMemberError(
            f"two files with the suffix .{suffix}; each suffix is a column, so rename one"
        )
    try:
        if suffix == "json":
            content = json.loads(data)
            if not isinstance(content, dict):
                raise _InvalidMemberError(f".json: expected an object, not {type(content).__name__}")
            values |= {name: value for name, value in content.items() if name not in values}
        elif suffix in _CELLS:
            text = data.decode().strip()
            values[suffix] = cell_parsers[suffix](text) if suffix in cell_parsers else text
        else:
            values[suffix] = data.decode("utf-8-sig") if suffix in _TEXTS else data
    except UnicodeDecodeError as error:
        raise _InvalidMemberError(f".{suffix}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _InvalidMemberError(f".{suffix}: not JSON: {error}") from None

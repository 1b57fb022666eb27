"""A row of the user's data, and the file and line that it came from."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rayfuse.data.embedded_files import EmbeddedFile
from rayfuse.spec.base import is_missing

_HASH_RANGE = 2**64


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file."""

    values: dict[str, Any]
    """Values by column."""
    file: str
    """URL of the file."""
    line: int
    """Line of a text file, or number of the row in other data, from 1."""

    @property
    def origin(self) -> str:
        """FILE:LINE; the first file of a row in a folder of classes."""
        if self.file.endswith("/"):
            return f"{self.file}{self.values.get('file_name', self.line)}"
        return f"{self.file}:{self.line}"

    @property
    def folder(self) -> str:
        """Folder of the file, to which relative media paths of the row refer."""
        return self.file.rsplit("/", 1)[0] if "/" in self.file else "."

    def digest(self) -> bytes:
        """Return a hash of the values, 16 bytes, that depends on neither the process nor the order of the columns.

        A column that is absent and one that is null are the same.
        """
        values = {name: value for name, value in self.values.items() if not is_missing(value)}
        canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, default=_json_default)
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def position(self) -> float:
        """Return a number from 0 to 1 by which a fraction of all rows is held out.

        It depends on the values alone, so that equal rows are in one split, whatever the other rows are.
        """
        return _to_position(self.digest())


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that cannot be used."""

    origin: str
    """FILE:LINE."""
    reason: str
    """Reason for rejecting the row."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


def hash_position(content: bytes) -> float:
    """Return a number from 0 to 1 that depends on some bytes, such as the name of a group."""
    return _to_position(hashlib.blake2b(content, digest_size=16).digest())


def _to_position(digest: bytes) -> float:
    return int.from_bytes(digest[:8], "big") / _HASH_RANGE


def _json_default(value: Any) -> str:
    if isinstance(value, EmbeddedFile):
        value = value.read()
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)

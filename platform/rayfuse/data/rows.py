"""A row of the user's data, and the file and line that it came from."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

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
    """Line of a text file, or row number of a parquet file, from 1."""

    @property
    def origin(self) -> str:
        """FILE:LINE."""
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

    def is_held_out(self, fraction: float) -> bool:
        """Return whether the row is one of about `fraction` of all rows to validate on.

        It depends on the values alone, so that equal rows are in one split, whatever the other rows are.
        """
        return int.from_bytes(self.digest()[:8], "big") / _HASH_RANGE < fraction


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that cannot be used."""

    origin: str
    """FILE:LINE."""
    reason: str
    """Reason for rejecting the row."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


def _json_default(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)

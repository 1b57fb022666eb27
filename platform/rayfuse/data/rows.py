"""A row of the user's data, and where it stands."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, the file that it came from, and its line (or row number) there."""

    values: dict[str, Any]
    file: str
    line: int

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def folder(self) -> str:
        """Where relative media paths of this row start."""
        return self.file.rsplit("/", 1)[0] if "/" in self.file else "."

    def digest(self) -> bytes:
        """A stable hash of the values: the same in every process, whatever the order of the columns.

        A column that is absent and one that is null are the same.
        """
        values = {name: value for name, value in self.values.items() if not is_missing(value)}
        canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, default=_hashable)
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


def _hashable(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)


def is_missing(value: Any) -> bool:
    """Null, or the NaN that tables use for null."""
    return value is None or (isinstance(value, float) and value != value)

"""Names as a model knows them: a list of known values, and a code for all others."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rayfuse.errors import BadInput

PADDING, UNKNOWN, FIRST = 0, 1, 2
"""Codes of a sequence: known items count from `FIRST`. A table's columns have no padding, so their codes differ."""

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SHOWN = 3


def name_of(value: Any) -> str:
    """A category or id as text: 3, 3.0, "3" and "3.0" are one; `007` is another than 7.

    Raises BadInput for what is no text, number or truth value.
    """
    if isinstance(value, str):
        if "." not in value and "e" not in value.lower():
            return value
        return _number_name(float(value)) if _NUMBER.fullmatch(value) else value
    if isinstance(value, (bool, int)):
        return _whole_name(value)
    if isinstance(value, float):
        return _number_name(value)
    raise BadInput(f"a text or a number belongs here, not {type(value).__name__}")


def _whole_name(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes out no more than 4300 digits
        raise BadInput("a number of thousands of digits is no name") from None


def _number_name(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)


def known(counts: Counter[str], min_count: int) -> list[str]:
    """The names that occur often enough, most frequent first; equally frequent ones by the alphabet."""
    return [
        name for name, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if n >= min_count
    ]


class Unknown:
    """What people should know of names that are not in a vocabulary."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._vocabulary = set(vocabulary)
        self._found: Counter[str] = Counter()
        self._all = 0

    @property
    def count(self) -> int:
        """How many were unknown."""
        return self._found.total()

    def add(self, name: str) -> None:
        self._all += 1
        if name not in self._vocabulary:
            self._found[name] += 1

    def __str__(self) -> str:
        shown = ", ".join(f"{name!r} ({n})" for name, n in self._found.most_common(_SHOWN))
        more = ", …" if len(self._found) > _SHOWN else ""
        return f"{self.count} of {self._all} values are unknown: {shown}{more}"

"""Vocabularies of categories and item ids, with a code for unknown values."""

import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rayfuse.errors import InvalidInputError
from rayfuse.spec.cells import canonical_text

PADDING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
"""Codes of an item sequence; known items have the codes from `FIRST_KNOWN`."""

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MAX_NAMES_SHOWN = 3
_EXACT_LIMIT = 2.0**64
"""Floats below it that are whole are named like the integer."""
_BOOLEANS = {text: text.title() for text in ("true", "TRUE", "false", "FALSE")}
"""Booleans as csv files of other programs have them: pandas reads them as True and False."""


def canonical_name(value: Any) -> str:
    """Convert a category or id to text, so that 3, 3.0, "3" and "3.0" are equal; "007" differs from 7.

    Texts have no white space around them and are in Unicode NFC; `true` and `TRUE` are the boolean.

    Raises InvalidInputError for values other than text, numbers and booleans.
    """
    if isinstance(value, str):
        return _text_name(canonical_text(value))
    if isinstance(value, (bool, int)):
        return _int_name(value)
    if isinstance(value, (float, Decimal)):
        return _float_name(float(value))
    raise InvalidInputError(f"expected a text or a number, got {type(value).__name__}")


def _text_name(text: str) -> str:
    if "." not in text and "e" not in text.lower():
        return text
    return _float_name(float(text)) if _NUMBER.fullmatch(text) else _BOOLEANS.get(text, text)


def _int_name(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python converts at most 4300 digits
        raise InvalidInputError("the number has more than 4300 digits; use a text") from None


def _float_name(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT_LIMIT else str(value)


def build_vocabulary(counts: Counter[str], min_frequency: int) -> list[str]:
    """Return the names that occur at least `min_frequency` times, by falling frequency, then alphabetically."""
    return [
        name for name, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if n >= min_frequency
    ]


class UnknownValues:
    """Count of values that are not in a vocabulary, with a summary for the log."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._vocabulary = set(map(canonical_name, vocabulary))
        self._unknown_counts: Counter[str] = Counter()
        self._total = 0

    @property
    def count(self) -> int:
        """Number of unknown values."""
        return self._unknown_counts.total()

    def add(self, name: str) -> None:
        """Count a value."""
        self._total += 1
        if name not in self._vocabulary:
            self._unknown_counts[name] += 1

    def __str__(self) -> str:
        shown = ", ".join(f"{name!r} ({n})" for name, n in self._unknown_counts.most_common(_MAX_NAMES_SHOWN))
        more = ", …" if len(self._unknown_counts) > _MAX_NAMES_SHOWN else ""
        return f"{self.count} of {self._total} values are unknown: {shown}{more}"

"""Metrics of replies that are JSON."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

INVALID = object()
"""Value of a text that is not JSON."""


def read_json(text: str) -> Any:
    """Return the value of a JSON text; INVALID if it is none, or has NaN or an infinite number."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return INVALID


def read_object(text: str) -> Any:
    """Return the dictionary or list of a JSON text; INVALID for other texts, also those of numbers and strings."""
    value = read_json(text)
    return value if isinstance(value, dict | list) else INVALID


def valid_json(texts: Sequence[str]) -> float:
    """Return the fraction of texts that are JSON; 0 without texts."""
    return sum(read_json(text) is not INVALID for text in texts) / max(1, len(texts))


def slot_f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute the micro F1 of slots: pairs of a path and a value in JSON objects; 0 where no text has any.

    Items of a list share the path of the list, so that their order does not count. A text that is not JSON has no slots.
    Of several references, the one that shares the most slots counts.
    """
    shared = found = wanted = 0
    for text, own in zip(texts, references, strict=True):
        slots = _slots(text)
        overlap, reference = max(
            (((slots & one).total(), one) for one in map(_slots, own)), key=lambda pair: pair[0]
        )
        shared, found, wanted = shared + overlap, found + slots.total(), wanted + reference.total()
    return 2 * shared / (found + wanted) if found + wanted else 0.0


def _slots(text: str) -> Counter[tuple[str, str]]:
    value = read_json(text)
    return Counter() if value is INVALID else Counter(_walk("", value))


def _walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _walk(f"{path}/{key}", part)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(path, part)
    else:
        number = isinstance(value, float) and value.is_integer()
        yield path, json.dumps(int(value) if number else value)


def _reject_constant(name: str) -> None:
    raise ValueError(name)

"""Columns that repeat another one, and columns that give the target away."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse.schema_inference.column import Column, canonical, is_blank
from rayfuse.schema_inference.numbers import is_number, parse_numbers
from rayfuse.schema_inference.sample import Sample

_MIN_PAIRS = 10
_REPEATS_OF_MAP = 2
_REPEATS_OF_FUNCTION = 5
_MIN_PAIRS_OF_FUNCTION = 50
_MANY_VALUES = 20
_MOSTLY_EQUAL = 0.3
_LINEAR = 0.99999
_WORDS_OF_TEXT = 3
_MAX_GAPS = 3
"""Largest ratio of the range of ids to their number."""


def find_copies(columns: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the columns whose values equal those of an earlier one in all rows, and its name."""
    first: dict[int, list[tuple[str, list[Any]]]] = {}
    copies: dict[str, str] = {}
    for name, values in columns.items():
        keys = [canonical(value) for value in values]
        alike = first.setdefault(hash(tuple(keys)), [])
        original = next((other for other, found in alike if found == keys), None)
        if original is not None and any(key is not None for key in keys):
            copies[name] = original
        else:
            alike.append((name, keys))
    return copies


def find_text_of_ids(name: str, sample: Sample) -> str | None:
    """Return the column of texts that whole numbers stand for, each for one text, as row numbers of a list of them do.

    None if there is none: the numbers repeat, have few gaps, and each is always next to the same text.
    """
    pairs = {
        other: [
            (value, text)
            for value, text in zip(sample.columns[name], texts, strict=True)
            if not is_blank(value) and not is_blank(text)
        ]
        for other, texts in sample.columns.items()
        if other != name
    }
    return next((other for other, found in pairs.items() if _are_ids_of_texts(found)), None)


def _are_ids_of_texts(pairs: Sequence[tuple[Any, Any]]) -> bool:
    if len(pairs) < _MIN_PAIRS or not all(isinstance(text, str) for _, text in pairs):
        return False
    numbers = _to_numbers([value for value, _ in pairs])
    if numbers is None or not all(number.is_integer() for number in numbers):
        return False
    texts = [text.strip() for _, text in pairs]
    distinct = len(set(numbers))
    words = sum(len(text.split()) for text in texts) / len(texts)
    return (
        len(set(zip(numbers, texts, strict=True))) == len(set(texts)) == distinct
        and len(pairs) >= _REPEATS_OF_MAP * distinct
        and max(numbers) - min(numbers) < _MAX_GAPS * distinct
        and words >= _WORDS_OF_TEXT
    )


def describe_leak(column: Column, values: Sequence[Any], target: str, targets: Sequence[Any]) -> str | None:
    """Return how a column gives a target away; None if it does not."""
    pairs = [
        (canonical(value), canonical(wanted))
        for value, wanted in zip(values, targets, strict=True)
        if not is_blank(value) and not is_blank(wanted)
    ]
    if len(pairs) < _MIN_PAIRS:
        return None
    distinct, wanted = len({value for value, _ in pairs}), len({value for _, value in pairs})
    if wanted < 2:
        return None
    if all(value == other for value, other in pairs):
        return f"a copy of `{target}`"
    mapped = len(set(pairs)) == distinct
    if mapped and distinct == wanted and len(pairs) >= _REPEATS_OF_MAP * distinct:
        return f"each of its {distinct} values stands for one value of `{target}`"
    if (
        mapped
        and column.kind in ("number", "category", "boolean", "id")
        and len(pairs) >= max(_MIN_PAIRS_OF_FUNCTION, _REPEATS_OF_FUNCTION * distinct)
    ):
        return f"each of its {distinct} values occurs with a single value of `{target}`"
    return _describe_numbers(pairs, target) if column.kind == "number" and wanted > _MANY_VALUES else None


def _describe_numbers(pairs: Sequence[tuple[Any, Any]], target: str) -> str | None:
    numbers, wanted = (_to_numbers(values) for values in zip(*pairs, strict=True))
    if numbers is None or wanted is None:
        return None
    equal = sum(a == b for a, b in zip(numbers, wanted, strict=True)) / len(pairs)
    if equal >= _MOSTLY_EQUAL:
        return f"equal to `{target}` in {equal:.0%} of the rows"
    if len(set(numbers)) > 1 and abs(statistics.correlation(numbers, wanted)) > _LINEAR:
        return f"a linear function of `{target}`"
    return None


def _to_numbers(values: Sequence[Any]) -> list[float] | None:
    if all(isinstance(value, str) for value in values):
        return parse_numbers(values)
    return [float(value) for value in values] if all(map(is_number, values)) else None

"""Kinds of columns of numbers."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rayfuse.schema_inference.column import (
    Column,
    names_code,
    names_entity,
    names_id,
    names_split,
    show_values,
)
from rayfuse.schema_inference.sample import Sample
from rayfuse.spec.cells import CellFormat, cell_parser

_MOSTLY_UNIQUE = 0.98
_MIN_ROWS = 20
_FEW_VALUES = 20
_MAX_ABS_VALUE = 3.4e38
_DENSE = 1.05
"""Largest ratio of the range of unique integers to the number of rows with which they count the rows."""

_parse = cell_parser("inferred", CellFormat())


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, not a boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return False
    return abs(float(value)) < _MAX_ABS_VALUE if not isinstance(value, int) else abs(value) < _MAX_ABS_VALUE


def parse_numbers(texts: Sequence[str], cells: CellFormat | None = None) -> list[float] | None:
    """Return texts as numbers; None if one is not a number. Integers of 16 digits and more are ids."""
    parse = _parse if cells is None else cell_parser("inferred", cells)
    found: list[Any] = [parse(text) for text in texts]
    return found if all(isinstance(number, float) for number in found) else None


def infer_numbers(name: str, values: Sequence[Any], sample: Sample) -> Column:
    """Return the kind of a column of numbers, which may also be ids or codes."""
    numbers = [float(value) for value in values]
    distinct = len(set(numbers))
    whole = all(number.is_integer() for number in numbers)
    low, high = min(numbers), max(numbers)
    shown = f"{low:.6g} to {high:.6g}"
    if names_split(name) and whole and distinct <= _FEW_VALUES:
        return Column(name, "unusable", "divides the rows into parts, by its name", num_distinct=distinct)
    unique = distinct >= _MOSTLY_UNIQUE * len(numbers) and len(numbers) >= _MIN_ROWS
    if whole and unique and (names_id(name) or _counts_rows(numbers, sample)):
        return Column(name, "id", f"numbers the rows, {shown}", num_distinct=distinct)
    if whole and (names_id(name) or names_entity(name)) and distinct > _FEW_VALUES:
        return Column(
            name, "id", f"identifies one of {distinct:,}, by its name", num_distinct=distinct,
            is_group=distinct <= len(numbers) / 2,
        )  # fmt: skip
    if whole and (names_code(name) or names_id(name) or names_entity(name)):
        note = f"codes, by the name: {show_values([int(number) for number in numbers])}"
        return Column(name, "category", note, num_distinct=distinct, is_group=not names_code(name))
    kind = "whole numbers" if whole else "numbers"
    return Column(name, "number", f"{kind}, {shown}", num_distinct=distinct)


def _counts_rows(numbers: Sequence[float], sample: Sample) -> bool:
    rows = sample.num_rows if sample.is_complete else sample.num_rows * len(numbers) / sample.size
    return numbers == sorted(numbers) and max(numbers) - min(numbers) < _DENSE * rows

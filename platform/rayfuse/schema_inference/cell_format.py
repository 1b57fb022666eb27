"""Marks in the cells of csv files: of missing values, decimals and thousands."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rayfuse.schema_inference.numbers import parse_numbers
from rayfuse.schema_inference.sample import Sample
from rayfuse.spec.cells import USUAL_MISSING_MARKS, CellFormat, cell_parser, resembles_number

_MISSING_MARKS = (
    "?",
    "-",
    "--",
    ".",
    "*",
    "n.a.",
    "N.A.",
    "none",
    "missing",
    "unknown",
    "-999",
    "not available",
)
"""Cells that may be missing in a column that otherwise has numbers."""
_MOSTLY = 0.5
_FORMATS = ({"thousands": ","}, {"decimal": ","}, {"thousands": ".", "decimal": ","}, {"thousands": " "})
_MIN_ROWS = 5


def find_cell_format(sample: Sample) -> Sample:
    """Return the sample with the marks of its cells: numbers that have some become numbers, missing cells None.

    A mark counts if columns that are texts otherwise hold numbers with it. Samples of files with types are unchanged.
    """
    if not sample.is_untyped:
        return sample
    columns = {
        name: [value for value in values if value is not None] for name, values in sample.columns.items()
    }
    texts = {name: values for name, values in columns.items() if _holds_marked_numbers(values)}
    marks = sorted({value.strip() for values in texts.values() for value in values} & set(_MISSING_MARKS))
    options = _find_format([[v for v in values if v.strip() not in marks] for values in texts.values()])
    if not marks and not options:
        return sample
    missing = {"missing_values": [*filter(None, USUAL_MISSING_MARKS), *marks]} if marks else {}
    cells = CellFormat(**options, **missing)
    parsed = {name: _parse(values, cells) for name, values in sample.columns.items() if name in texts}
    return dataclasses.replace(sample, columns={**sample.columns, **parsed}, cells=cells)


def _holds_marked_numbers(values: Sequence[Any]) -> bool:
    """Return whether cells are numbers with marks, or numbers but for marks of missing values."""
    if len(values) < _MIN_ROWS or not all(isinstance(value, str) for value in values):
        return False
    stripped = Counter(value.strip() for value in values)
    others = [text for text in stripped if text not in _MISSING_MARKS]
    numbers = sum(count for text, count in stripped.items() if resembles_number(text))
    if numbers < _MOSTLY * len(values) or not all(map(resembles_number, others)):
        return False
    return parse_numbers(list(stripped)) is None


def _find_format(columns: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the marks with which most columns are numbers that are none without."""
    odd = [values for values in columns if values and parse_numbers(values) is None]
    fits = [
        sum(parse_numbers(values, CellFormat(**options)) is not None for values in odd)
        for options in _FORMATS
    ]
    best = max(range(len(_FORMATS)), key=fits.__getitem__)
    return dict(_FORMATS[best]) if fits[best] else {}


def _parse(values: Sequence[Any], cells: CellFormat) -> list[Any]:
    parse = cell_parser("inferred", cells)
    return [parse(value) if isinstance(value, str) else value for value in values]

"""Tabular data: scaled number columns, and categories as indices into a vocabulary."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.formatting import truncated_repr
from rayfuse.modalities.base import CLIP_LIMIT, Features, InputFitter, Modality, Schema
from rayfuse.modalities.scalers import RobustFitter
from rayfuse.modalities.vocabulary import UnknownValues, build_vocabulary, canonical_name
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import resembles_number
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.inputs import TabularInput
from rayfuse.spec.summary import Summary
from rayfuse.spec.table_columns import CategoryColumn, Column, InferredColumn, NumberColumn

_UNKNOWN, _MISSING, _FIRST_KNOWN = 0, 1, 2
_MAX_REPR_CHARS = 40
_BUFFER_SIZE = 1024
_MAX_INFERRED_CATEGORIES = 10_000
"""Distinct numbers that are counted in a column whose kind is not known yet."""
_NUM_EXAMPLES = 3
_MOSTLY = 0.5
"""Fraction of values that look like numbers in an inferred column of categories above which its texts are reported."""
_ASSUMED_CATEGORIES = [str(number) for number in range(100)]


class TabularModality(Modality):
    """Columns of numbers and categories.

    Features: `numbers`, float32 (number columns,), scaled, 0 where missing; `missing`, float32 (number columns,), 1
    where missing; `categories`, int64 (category columns,): 0 for unknown, 1 for missing, known categories from 2.
    """

    options: TabularInput
    value_formats = ("json",)
    media_types = ("application/json", "text/plain", "application/octet-stream")

    @classmethod
    def fitter(cls, options: TabularInput) -> InputFitter | None:
        return None if all(map(_is_fitted, options.columns.values())) else _TableFitter(options)

    def decode(self, value: Any) -> dict[str, Any]:
        """Decode a mapping {column: value} to a float, a category name or None for each column."""
        if not isinstance(value, Mapping):
            raise InvalidInputError(f"expected a mapping {{column: value}}, got {type(value).__name__}")
        for name in value:
            if name not in self.options.columns:
                near = suggest_nearest(str(name), list(self.options.columns))
                raise InvalidInputError(
                    f"{truncated_repr(name, _MAX_REPR_CHARS)}: not a column of this input; {near}"
                )
        decoded = {name: self._parse_cell(name, value.get(name)) for name in self.options.columns}
        if all(cell is None for cell in decoded.values()):
            raise MissingInputError(f"none of the columns has a value ({', '.join(self.options.columns)})")
        return decoded

    def process(self, decoded: Mapping[str, Any]) -> Features:
        given = [decoded[name] for name in self.options.numeric_columns]
        missing = np.array([number is None for number in given], dtype=np.float32)
        numbers = np.array([0.0 if number is None else number for number in given], dtype=np.float64)
        scaled = np.clip((numbers - self._center) / self._scale, -CLIP_LIMIT, CLIP_LIMIT)
        codes = [self._encode_category(name, decoded[name]) for name in self.options.category_vocabularies]
        return {
            "numbers": np.where(missing > 0, 0, scaled).astype(np.float32),
            "missing": missing,
            "categories": np.array(codes, dtype=np.int64),
        }

    def dummy_features(self) -> Features:
        return self.process(dict.fromkeys(self.options.columns))

    def with_assumed_statistics(self) -> tuple[TabularInput, list[str]]:
        """Assume that inferred columns are numbers, center 0, scale 1, and 100 values of each category."""
        columns = {name: _with_assumed_statistics(column) for name, column in self.options.columns.items()}
        note = f"columns without a kind are numbers; categories have {len(_ASSUMED_CATEGORIES)} values"
        return self.options.model_copy(update={"columns": columns}), [note]

    def json_schema(self) -> Schema:
        number = {"type": ["number", "boolean", "null"]}
        category = {"type": ["string", "number", "boolean", "null"]}
        known = self.options.category_vocabularies
        columns = {
            name: {**category, "examples": known[name][:_NUM_EXAMPLES]} if name in known else number
            for name in self.options.columns
        }
        return {"type": "object", "properties": columns, "additionalProperties": False}

    def example(self) -> dict[str, Any]:
        return {name: _example_cell(column) for name, column in self.options.columns.items()}

    def description(self) -> str:
        return f"values of the columns {', '.join(self.options.columns)}; null or left out where missing"

    def summary(self) -> Summary:
        return _ColumnSummary(self.options)

    def _parse_cell(self, name: str, value: Any) -> Any:
        if _is_missing_cell(value):
            return None
        try:
            return (
                _parse_number(value)
                if isinstance(self.options.columns[name], NumberColumn)
                else canonical_name(value)
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"column {name}: {error}") from None

    def _encode_category(self, name: str, value: str | None) -> int:
        return _MISSING if value is None else self._codes[name].get(value, _UNKNOWN)

    @cached_property
    def _codes(self) -> dict[str, dict[str, int]]:
        categories = self.options.category_vocabularies.items()
        return {
            name: {canonical_name(text): i for i, text in enumerate(texts, _FIRST_KNOWN)}
            for name, texts in categories
        }

    @cached_property
    def _center(self) -> np.ndarray:
        return np.array([column.center for column in self._number_columns], dtype=np.float64)

    @cached_property
    def _scale(self) -> np.ndarray:
        return np.array([column.scale for column in self._number_columns], dtype=np.float64)

    @property
    def _number_columns(self) -> list[NumberColumn]:
        return [column for column in self.options.columns.values() if isinstance(column, NumberColumn)]


def _with_assumed_statistics(column: Column) -> Column:
    if isinstance(column, CategoryColumn):
        return column if column.vocabulary else CategoryColumn(vocabulary=_ASSUMED_CATEGORIES)
    return NumberColumn(center=0.0, scale=1.0)


def _example_cell(column: Column) -> Any:
    if isinstance(column, NumberColumn):
        return column.center
    return column.vocabulary[0] if isinstance(column, CategoryColumn) and column.vocabulary else None


def _is_fitted(column: Column) -> bool:
    if isinstance(column, NumberColumn):
        return column.center is not None and column.scale is not None
    return isinstance(column, CategoryColumn) and column.vocabulary is not None


def _iter_mappings(values: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (value for value in values if isinstance(value, Mapping))


class _ColumnSummary(Summary):
    """Missing values and unknown categories of each column, and texts in columns that are mostly numbers."""

    def __init__(self, options: TabularInput) -> None:
        self._columns = tuple(options.columns)
        self._rows = 0
        self._missing: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._texts: dict[str, Counter[str]] = {
            name: Counter()
            for name, column in options.columns.items()
            if isinstance(column, CategoryColumn) and column.inferred
        }
        self._unknown = {
            name: UnknownValues(vocabulary) for name, vocabulary in options.category_vocabularies.items()
        }

    def update(self, value: Any) -> None:
        for row in _iter_mappings([value]):
            self._rows += 1
            self._missing.update(name for name in self._columns if _is_missing_cell(row.get(name)))
            for name, texts in self._texts.items():
                self._add_to_mixture(name, texts, row.get(name))
            for name, column in self._unknown.items():
                for category in _category_names([row.get(name)]):
                    column.add(category)

    def lines(self) -> Iterator[str]:
        for name in self._columns:
            if self._missing[name]:
                yield f"column {name} is missing in {self._missing[name]} of {self._rows} rows"
        for name, texts in self._texts.items():
            if texts and self._numbers[name] >= _MOSTLY * (self._rows - self._missing[name]):
                yield self._describe_mixture(name, texts)
        for name, column in self._unknown.items():
            if column.count:
                yield f"column {name}: {column}"

    def _add_to_mixture(self, name: str, texts: Counter[str], value: Any) -> None:
        is_text = isinstance(value, str)
        self._numbers[name] += resembles_number(value) if is_text else _looks_like_number(value)
        if is_text and (len(texts) < _MAX_INFERRED_CATEGORIES or value in texts):
            texts[value] += 1

    def _describe_mixture(self, name: str, texts: Counter[str]) -> str:
        shown = ", ".join(
            f"{truncated_repr(text, _MAX_REPR_CHARS)} ({count})"
            for text, count in texts.most_common(_NUM_EXAMPLES)
        )
        more = ", …" if len(texts) > _NUM_EXAMPLES else ""
        return (
            f"WARNING column {name} is a category, although {self._numbers[name]} of its values look like numbers: {shown}{more} are texts; "
            "correct these cells, add them to `data.missing_values`, set `data.thousands` or `data.decimal`, or write "
            f"`{name}: number` to make them invalid rows, `{name}: category` to keep them"
        )


class _TableFitter(InputFitter):
    """Kinds of inferred columns, scales of numbers and vocabularies of categories."""

    def __init__(self, options: TabularInput) -> None:
        self._options = options
        self._columns = {
            name: _ColumnStats(name, column)
            for name, column in options.columns.items()
            if not _is_fitted(column)
        }
        self._invalid = ""

    def partial_fit(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            self._invalid = self._invalid or truncated_repr(value, _MAX_REPR_CHARS)
            return
        for name, column in self._columns.items():
            if not _is_missing_cell(value.get(name)):
                column.add(value[name])

    def finalize(self) -> TabularInput:
        if self._invalid and not any(column.has_values for column in self._columns.values()):
            raise DataError(
                f"no training row has a mapping {{column: value}}; the first value is {self._invalid}"
            )
        fitted = {name: _fit_column(name, column, self._options) for name, column in self._columns.items()}
        return self._options.model_copy(update={"columns": {**self._options.columns, **fitted}})


class _ColumnStats:
    """Statistics of one column; an inferred one is a column of numbers until another value occurs.

    Until then its numbers are counted as categories too, up to a limit that keeps memory flat.
    """

    def __init__(self, name: str, column: Column) -> None:
        self.column: Column = NumberColumn() if isinstance(column, InferredColumn) else column
        self.first_value: Any = None
        self.scaler = RobustFitter()
        self.categories: Counter[str] = Counter()
        self.has_values = False
        self._name = name
        self._is_inferred = isinstance(column, InferredColumn)
        self._too_many_categories = False
        self._pending: list[float] = []

    def add(self, value: Any) -> None:
        if not self.has_values:
            self.first_value, self.has_values = value, True
        if self._is_inferred and not _looks_like_number(value):
            self._infer_category(value)
        if isinstance(self.column, CategoryColumn):
            self.categories.update(_category_names([value]))
        else:
            self._add_number(value)

    def flush(self) -> None:
        """Add the buffered numbers to the scaler."""
        self.scaler.partial_fit(np.array(self._pending))
        self._pending.clear()

    def _infer_category(self, value: Any) -> None:
        if self._too_many_categories:
            raise DataError(
                f"column `{self._name}`: {truncated_repr(value, _MAX_REPR_CHARS)} follows more than {_MAX_INFERRED_CATEGORIES} distinct "
                f"numbers; write `{self._name}: category` or `{self._name}: number`"
            )
        self.column, self._is_inferred = CategoryColumn(), False

    def _add_number(self, value: Any) -> None:
        number = _number_or_none(value)
        if number is None:
            return
        self._pending.append(number)
        if len(self._pending) == _BUFFER_SIZE:
            self.flush()
        if self._is_inferred and not self._too_many_categories:
            self.categories.update(_category_names([value]))
            self._too_many_categories = len(self.categories) > _MAX_INFERRED_CATEGORIES
            if self._too_many_categories:
                self.categories.clear()


def _fit_column(name: str, stats: _ColumnStats, options: TabularInput) -> Column:
    if not stats.has_values:
        raise DataError(f"column `{name}`: no training row has a value; correct the name or leave it out")
    column = stats.column
    if isinstance(column, NumberColumn):
        return _fit_number_column(name, column, stats)
    assert isinstance(column, CategoryColumn)
    if not stats.categories:
        raise DataError(
            f"column `{name}`: no training row has a text or number; the first value is "
            f"{truncated_repr(stats.first_value, _MAX_REPR_CHARS)}"
        )
    vocabulary = build_vocabulary(stats.categories, options.min_frequency)
    if not vocabulary:
        raise DataError(
            f"column `{name}`: none of its {len(stats.categories)} categories occurs in {options.min_frequency} "
            "training rows; lower `min_frequency` or leave the column out"
        )
    inferred = isinstance(options.columns[name], InferredColumn)
    return column.model_copy(update={"vocabulary": vocabulary, "inferred": inferred})


def _fit_number_column(name: str, column: NumberColumn, stats: _ColumnStats) -> NumberColumn:
    stats.flush()
    if not stats.scaler.count:
        remedy = f"use `{name}: category`" if _category_names([stats.first_value]) else "correct the column"
        raise DataError(
            f"column `{name}`: no training row has a number; the first value is "
            f"{truncated_repr(stats.first_value, _MAX_REPR_CHARS)}; {remedy}"
        )
    center, scale = stats.scaler.center_and_scale()
    given = {"center": column.center, "scale": column.scale}
    return column.model_copy(
        update={"center": center, "scale": scale} | {k: v for k, v in given.items() if v is not None}
    )


def _is_missing_cell(value: Any) -> bool:
    """Return whether a cell is missing; a blank text is, as in csv files."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _parse_number(value: Any) -> float:
    if not isinstance(value, (bool, int, float, Decimal)):
        raise InvalidInputError(f"expected a number, got {truncated_repr(value, _MAX_REPR_CHARS)}")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInputError("the number is infinite or too large for a float")
    return number


def _number_or_none(value: Any) -> float | None:
    try:
        return _parse_number(value)
    except InvalidInputError:
        return None


def _looks_like_number(value: Any) -> bool:
    return not isinstance(value, bool) and _number_or_none(value) is not None


def _category_names(values: Iterable[Any]) -> list[str]:
    """Return the values that can be categories, as text."""
    kinds = (str, bool, int, float, Decimal)
    return [
        canonical_name(value) for value in values if isinstance(value, kinds) and not _is_missing_cell(value)
    ]

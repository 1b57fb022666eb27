"""Columns of a table: numbers scaled robustly, categories by their place in a list of known ones."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput, DataError, MissingInput
from rayfuse.modalities.base import FARTHEST, Features, Modality
from rayfuse.modalities.scales import Sampled
from rayfuse.modalities.vocabulary import Unknown, known, name_of
from rayfuse.spec.inputs import CategoryColumn, Column, InferredColumn, NumberColumn, TableInput
from rayfuse.spec.problems import nearest

_UNKNOWN, _MISSING, _FIRST = 0, 1, 2
_SHOWN = 40
_AT_ONCE = 1024


class TableModality(Modality):
    """Features `numbers` and `missing`: float32 (number columns,), the one scaled and 0 where the other is 1.

    `categories`: int64 (category columns,), 0 for an unknown one, 1 for a missing one, known ones from 2.
    """

    forms = ("json",)
    media_types = ("application/json", "text/plain", "application/octet-stream")

    def __init__(self, options: TableInput) -> None:
        self.options = options

    @classmethod
    def fitted(cls, options: TableInput, values: Iterable[Any]) -> TableInput:
        """Kinds of the columns that are to be inferred, scales of the numbers, vocabularies of the categories."""
        if all(_is_fitted(column) for column in options.columns.values()):
            return options
        columns = _with_kinds(options.columns, values)
        found = {name: _Found() for name, column in columns.items() if not _is_fitted(column)}
        for row in _mappings(values):
            for name, column in found.items():
                if not _is_missing(row.get(name)):
                    column.add(row[name], isinstance(columns[name], NumberColumn))
        fitted = {name: _fit(name, columns[name], column, options) for name, column in found.items()}
        return options.model_copy(update={"columns": {**columns, **fitted}})

    def decode(self, value: Any) -> dict[str, Any]:
        """A mapping {column: value} → float, known text or None for each column."""
        if not isinstance(value, Mapping):
            raise BadInput(f"a mapping {{column: value}} belongs here, not {type(value).__name__}")
        for name in value:
            if name not in self.options.columns:
                near = nearest(str(name), list(self.options.columns))
                raise BadInput(f"{_shown(name)}: not a column of this table; {near}")
        decoded = {name: self._cell(name, value.get(name)) for name in self.options.columns}
        if all(cell is None for cell in decoded.values()):
            raise MissingInput(f"none of its columns has a value ({', '.join(self.options.columns)})")
        return decoded

    def process(self, decoded: Mapping[str, Any]) -> Features:
        given = [decoded[name] for name in self.options.numbers]
        missing = np.array([number is None for number in given], dtype=np.float32)
        numbers = np.array([0.0 if number is None else number for number in given], dtype=np.float64)
        scaled = np.clip((numbers - self._center) / self._scale, -FARTHEST, FARTHEST)
        codes = [self._code(name, decoded[name]) for name in self.options.categories]
        return {
            "numbers": np.where(missing > 0, 0, scaled).astype(np.float32),
            "missing": missing,
            "categories": np.array(codes, dtype=np.int64),
        }

    def blank(self) -> Features:
        return self.process(dict.fromkeys(self.options.columns))

    def findings(self, values: Iterable[Any]) -> Iterable[str]:
        rows = 0
        missing: Counter[str] = Counter()
        unknown = {name: Unknown(vocabulary) for name, vocabulary in self.options.categories.items()}
        for row in _mappings(values):
            rows += 1
            missing.update(name for name in self.options.columns if _is_missing(row.get(name)))
            for name, column in unknown.items():
                for category in _names([row.get(name)]):
                    column.add(category)
        for name in self.options.columns:
            if missing[name]:
                yield f"column {name} is missing in {missing[name]} of {rows} rows"
        for name, column in unknown.items():
            if column.count:
                yield f"column {name}: {column}"

    def _cell(self, name: str, value: Any) -> Any:
        if _is_missing(value):
            return None
        try:
            return _number(value) if isinstance(self.options.columns[name], NumberColumn) else name_of(value)
        except BadInput as error:
            raise BadInput(f"column {name}: {error}") from None

    def _code(self, name: str, value: str | None) -> int:
        return _MISSING if value is None else self._codes[name].get(value, _UNKNOWN)

    @cached_property
    def _codes(self) -> dict[str, dict[str, int]]:
        categories = self.options.categories.items()
        return {name: {text: i for i, text in enumerate(texts, _FIRST)} for name, texts in categories}

    @cached_property
    def _center(self) -> np.ndarray:
        return np.array([column.center for column in self._number_columns], dtype=np.float64)

    @cached_property
    def _scale(self) -> np.ndarray:
        return np.array([column.scale for column in self._number_columns], dtype=np.float64)

    @property
    def _number_columns(self) -> list[NumberColumn]:
        return [column for column in self.options.columns.values() if isinstance(column, NumberColumn)]


def _is_fitted(column: Column) -> bool:
    if isinstance(column, NumberColumn):
        return column.center is not None and column.scale is not None
    return isinstance(column, CategoryColumn) and column.vocabulary is not None


def _mappings(values: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (value for value in values if isinstance(value, Mapping))


def _with_kinds(columns: Mapping[str, Column], values: Iterable[Any]) -> dict[str, Column]:
    """The columns, those that are to be inferred as numbers if all of their values are, else as categories."""
    unsure = {name for name, column in columns.items() if isinstance(column, InferredColumn)}
    kinds: dict[str, Column] = {name: NumberColumn() for name in unsure}
    for row in _mappings(values if unsure else ()):
        for name in [name for name in unsure if not _is_missing(row.get(name))]:
            if not _looks_like_number(row[name]):
                kinds[name] = CategoryColumn()
                unsure.remove(name)
        if not unsure:
            break
    return {**columns, **kinds}


class _Found:
    """What training rows hold in a column."""

    def __init__(self) -> None:
        self.first: Any = None
        self.numbers = Sampled()
        self.names: Counter[str] = Counter()
        self.there = False
        self._waiting: list[float] = []

    def add(self, value: Any, is_number: bool) -> None:
        if not self.there:
            self.first, self.there = value, True
        if not is_number:
            self.names.update(_names([value]))
            return
        number = _number_or_none(value)
        if number is not None:
            self._waiting.append(number)
            if len(self._waiting) == _AT_ONCE:
                self.settle()

    def settle(self) -> None:
        """Take in the numbers that wait."""
        self.numbers.add(np.array(self._waiting))
        self._waiting.clear()


def _fit(name: str, column: Column, found: _Found, options: TableInput) -> Column:
    if not found.there:
        raise DataError(f"column `{name}`: no training row has a value; correct its name or leave it out")
    if isinstance(column, NumberColumn):
        return _fit_numbers(name, column, found)
    assert isinstance(column, CategoryColumn)
    vocabulary = known(found.names, options.min_count)
    if not vocabulary:
        raise DataError(
            f"column `{name}`: none of its {len(found.names)} categories occurs in {options.min_count} "
            "training rows; lower `min_count`, or leave the column out"
        )
    return column.model_copy(update={"vocabulary": vocabulary})


def _fit_numbers(name: str, column: NumberColumn, found: _Found) -> NumberColumn:
    found.settle()
    if not found.numbers.count:
        raise DataError(
            f"column `{name}`: no training row has a number, but such as {_shown(found.first)}; "
            f"write `{name}: category`"
        )
    center, scale = found.numbers.scale()
    kept = {"center": column.center, "scale": column.scale}
    return column.model_copy(
        update={"center": center, "scale": scale} | {k: v for k, v in kept.items() if v is not None}
    )


def _number(value: Any) -> float:
    if not isinstance(value, (bool, int, float, Decimal)):
        raise BadInput(f"a number belongs here, not {_shown(value)}")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise BadInput("the number is infinite or too large")
    return number


def _number_or_none(value: Any) -> float | None:
    try:
        return _number(value)
    except BadInput:
        return None


def _looks_like_number(value: Any) -> bool:
    return not isinstance(value, bool) and _number_or_none(value) is not None


def _names(values: Iterable[Any]) -> list[str]:
    """The values that can be categories, as text."""
    kinds = (str, bool, int, float)
    return [name_of(value) for value in values if isinstance(value, kinds) and not _is_missing(value)]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, Decimal)) and value != value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

"""Sequences of items: ids from a vocabulary, and the age of each."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.formatting import truncated_repr
from rayfuse.modalities.base import Features, InputFitter, Modality, Schema, object_schema, pad
from rayfuse.modalities.vocabulary import (
    FIRST_KNOWN,
    PADDING,
    UNKNOWN,
    UnknownValues,
    build_vocabulary,
    canonical_name,
)
from rayfuse.spec.inputs import ItemSequenceInput
from rayfuse.spec.summary import Summary

_EVENT_KEYS = ("id", "time")
_NUM_EXAMPLES = 3
_NUM_ASSUMED_ITEMS = 10_000
_MAX_REPR_CHARS = 40
_MAX_ITEMS = 1_000_000
_MAX_TIME_SECONDS = 1e15  # above it float64 no longer distinguishes neighboring times


class ItemSequence(NamedTuple):
    """A decoded sequence of items."""

    ids: list[str]
    """Ids from the oldest to the newest item."""
    times: list[float] | None
    """Time of each item in seconds; None if the items have no times."""


class ItemSequenceModality(Modality):
    """Sequences of items, such as a user's purchases.

    Features: `items`, int64 (steps,), oldest first: 0 for padding, 1 for unknown items, known items from 2; `ages`,
    float32 (steps,), log(1 + seconds before the newest item), 0 without times; `item_mask`, int64 (steps,).
    """

    options: ItemSequenceInput
    value_formats = ("json",)
    media_types = ("application/json", "text/plain", "application/octet-stream")

    @classmethod
    def fitter(cls, options: ItemSequenceInput) -> InputFitter | None:
        return _VocabularyFitter(options) if options.vocabulary is None else None

    def decode(self, value: Any) -> ItemSequence:
        """Decode a list of ids, oldest first, or of {"id", "time"} in any order, to the newest `max_length` items."""
        if not isinstance(value, (list, tuple)):
            raise InvalidInputError(f"expected a list of items, got {type(value).__name__}")
        if not value:
            raise MissingInputError("the list of items is empty")
        if len(value) > _MAX_ITEMS:
            raise InvalidInputError(
                f"{len(value)} items exceed the maximum of {_MAX_ITEMS}; give the newest ones"
            )
        sequence = (
            _parse_events(value) if isinstance(value[0], Mapping) else ItemSequence(_parse_ids(value), None)
        )
        newest = slice(-self.options.max_length, None)
        return ItemSequence(sequence.ids[newest], sequence.times and sequence.times[newest])

    def process(self, decoded: ItemSequence) -> Features:
        codes = [self._codes.get(item, UNKNOWN) for item in decoded.ids]
        times = np.array(decoded.times or [0.0] * len(codes), dtype=np.float64)
        return {
            "items": np.array(codes, dtype=np.int64),
            "ages": np.log1p(times[-1] - times).astype(np.float32),
            "item_mask": np.ones(len(codes), dtype=np.int64),
        }

    def num_steps(self, decoded: ItemSequence) -> int:
        """Return the number of items."""
        return len(decoded.ids)

    def dummy_features(self) -> Features:
        return {
            "items": np.array([UNKNOWN], dtype=np.int64),
            "ages": np.zeros(1, dtype=np.float32),
            "item_mask": np.ones(1, dtype=np.int64),
        }

    def longest_features(self, as_words: bool = False) -> Features:
        return self.process(ItemSequence(["0"] * self.options.max_length, None))

    def with_assumed_statistics(self) -> tuple[ItemSequenceInput, list[str]]:
        """Assume a vocabulary of 10 000 items if there is none."""
        if self.options.vocabulary is not None:
            return self.options, []
        vocabulary = [str(number) for number in range(_NUM_ASSUMED_ITEMS)]
        assumed = self.options.model_copy(update={"vocabulary": vocabulary})
        return assumed, [f"{len(vocabulary)} items"]

    def json_schema(self) -> Schema:
        item = {"type": ["string", "number", "boolean"]}
        time = {"type": ["number", "string"], "description": "seconds, or a date and time of ISO 8601"}
        return {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [item, object_schema({"id": item, "time": time})]},
        }

    def example(self) -> list[str]:
        return (self.options.vocabulary or ["item"])[:_NUM_EXAMPLES]

    def description(self) -> str:
        return f"ids, the oldest first, or ids with times; the newest {self.options.max_length} are read"

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: (rows, steps)."""
        return {name: pad([row[name] for row in rows], 0, PADDING) for name in rows[0]}

    def summary(self) -> Summary:
        return _ItemSummary(self.options)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {
            canonical_name(item): code for code, item in enumerate(self.options.vocabulary or (), FIRST_KNOWN)
        }


class _ItemSummary(Summary):
    """Items that are not in the vocabulary."""

    def __init__(self, options: ItemSequenceInput) -> None:
        self._unknown = UnknownValues(options.vocabulary or ())

    def update(self, value: Any) -> None:
        for item in _iter_ids([value]):
            self._unknown.add(item)

    def lines(self) -> list[str]:
        return [str(self._unknown)] if self._unknown.count else []


class _VocabularyFitter(InputFitter):
    """Items that occur at least `min_frequency` times."""

    def __init__(self, options: ItemSequenceInput) -> None:
        self._options = options
        self._counts: Counter[str] = Counter()
        self._first_value = ""

    def partial_fit(self, value: Any) -> None:
        self._first_value = self._first_value or truncated_repr(value, _MAX_REPR_CHARS)
        self._counts.update(_iter_ids([value]))

    def finalize(self) -> ItemSequenceInput:
        if not self._counts:
            found = f"the first value is {self._first_value}; write lists of ids" if self._first_value else ""
            raise DataError(
                f"no training row has an item; {found or 'check the column, or leave the input out'}"
            )
        vocabulary = build_vocabulary(self._counts, self._options.min_frequency)
        if not vocabulary:
            raise DataError(
                f"min_frequency: none of the {len(self._counts)} items occurs {self._options.min_frequency} times in the "
                "training rows; use a lower value"
            )
        return self._options.model_copy(update={"vocabulary": vocabulary})


def _parse_ids(items: Sequence[Any]) -> list[str]:
    return [_parse_id(place, item) for place, item in enumerate(items)]


def _parse_events(items: Sequence[Any]) -> ItemSequence:
    found = [_parse_event(place, item) for place, item in enumerate(items)]
    found.sort(key=lambda event: event[1])
    return ItemSequence([item for item, _ in found], [time for _, time in found])


def _parse_event(place: int, item: Any) -> tuple[str, float]:
    if not isinstance(item, Mapping) or sorted(item) != sorted(_EVENT_KEYS):
        raise InvalidInputError(
            f'item {place}: expected {{"id": …, "time": …}} as in the first item, got {truncated_repr(item, _MAX_REPR_CHARS)}'
        )
    return _parse_id(place, item["id"]), _parse_time(place, item["time"])


def _parse_id(place: int, value: Any) -> str:
    if value is None or value != value:
        raise InvalidInputError(f"item {place}: the id is missing")
    try:
        return canonical_name(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"item {place}: {error}") from None


def _parse_time(place: int, value: Any) -> float:
    """Parse seconds of any clock, or a date and time of ISO 8601, in UTC if it has no time zone."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            value = aware.timestamp()
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        seconds = float(value) if is_number else math.nan
    except (ValueError, OverflowError, OSError):
        seconds = math.nan
    if not abs(seconds) <= _MAX_TIME_SECONDS:
        raise InvalidInputError(
            f"item {place}: expected a time in seconds or ISO 8601, got {truncated_repr(value, _MAX_REPR_CHARS)}"
        )
    return seconds


def _iter_ids(values: Iterable[Any]) -> Iterable[str]:
    """Yield the ids of all sequences that can be read."""
    for value in values:
        for item in value if isinstance(value, (list, tuple)) else ():
            item = item.get("id") if isinstance(item, Mapping) else item
            if isinstance(item, (str, int, float, Decimal)) and item == item:
                yield canonical_name(item)

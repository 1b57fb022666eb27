"""A history of items: ids from a list of known ones, and how long ago each was."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rayfuse.errors import BadInput, DataError, MissingInput
from rayfuse.modalities.base import Features, Modality, pad
from rayfuse.modalities.vocabulary import FIRST, PADDING, UNKNOWN, Unknown, known, name_of
from rayfuse.spec.inputs import SequenceInput

_MEMBERS = ("id", "time")
_SHOWN = 40
_LATEST = 1e15  # seconds: beyond it neighbouring times are no longer told apart


class History(NamedTuple):
    """Ids from the oldest to the newest, and the times of all of them in seconds, or of none."""

    ids: list[str]
    times: list[float] | None


class SequenceModality(Modality):
    """Features `items`: int64 (steps,), 0 for padding, 1 for an unknown one, known ones from 2, oldest first.

    `ages`: float32 (steps,), log(1 + seconds before the newest item), 0 without times; `item_mask`: int64 (steps,).
    """

    forms = ("json",)
    media_types = ("application/json", "text/plain", "application/octet-stream")

    def __init__(self, options: SequenceInput) -> None:
        self.options = options

    @classmethod
    def fitted(cls, options: SequenceInput, values: Iterable[Any]) -> SequenceInput:
        """The vocabulary: items that occur at least `min_count` times."""
        if options.vocabulary is not None:
            return options
        counts = Counter(_ids(values))
        if not counts:
            raise DataError("no training row has an item")
        vocabulary = known(counts, options.min_count)
        if not vocabulary:
            raise DataError(
                f"none of its {len(counts)} items occurs {options.min_count} times in the training rows; "
                "lower `min_count`"
            )
        return options.model_copy(update={"vocabulary": vocabulary})

    def decode(self, value: Any) -> History:
        """A list of ids (oldest first), or of {"id", "time"} in any order → the newest `length` of them."""
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"a list of items belongs here, not {type(value).__name__}")
        if not value:
            raise MissingInput("its list of items is empty")
        history = _timed(value) if isinstance(value[0], Mapping) else History(_plain(value), None)
        newest = slice(-self.options.length, None)
        return History(history.ids[newest], history.times and history.times[newest])

    def process(self, decoded: History) -> Features:
        codes = [self._codes.get(item, UNKNOWN) for item in decoded.ids]
        times = np.array(decoded.times or [0.0] * len(codes), dtype=np.float64)
        return {
            "items": np.array(codes, dtype=np.int64),
            "ages": np.log1p(times[-1] - times).astype(np.float32),
            "item_mask": np.ones(len(codes), dtype=np.int64),
        }

    def steps(self, decoded: History) -> int:
        """Items."""
        return len(decoded.ids)

    def blank(self) -> Features:
        return {
            "items": np.array([UNKNOWN], dtype=np.int64),
            "ages": np.zeros(1, dtype=np.float32),
            "item_mask": np.ones(1, dtype=np.int64),
        }

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: (rows, steps)."""
        return {name: pad([row[name] for row in rows], 0, PADDING) for name in rows[0]}

    def findings(self, values: Iterable[Any]) -> Iterable[str]:
        unknown = Unknown(self.options.vocabulary or ())
        for item in _ids(values):
            unknown.add(item)
        if unknown.count:
            yield str(unknown)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.options.vocabulary or (), FIRST)}


def _plain(items: Sequence[Any]) -> list[str]:
    return [_id(place, item) for place, item in enumerate(items)]


def _timed(items: Sequence[Any]) -> History:
    found = [_event(place, item) for place, item in enumerate(items)]
    found.sort(key=lambda event: event[1])
    return History([item for item, _ in found], [time for _, time in found])


def _event(place: int, item: Any) -> tuple[str, float]:
    if not isinstance(item, Mapping) or sorted(item) != sorted(_MEMBERS):
        raise BadInput(f'item {place}: {{"id": …, "time": …}} belongs here as elsewhere, not {_shown(item)}')
    return _id(place, item["id"]), _seconds(place, item["time"])


def _id(place: int, value: Any) -> str:
    if value is None or value != value:
        raise BadInput(f"item {place}: its id is missing")
    try:
        return name_of(value)
    except BadInput as error:
        raise BadInput(f"item {place}: {error}") from None


def _seconds(place: int, value: Any) -> float:
    """Seconds of any clock, or a date and time of ISO 8601, in UTC where it tells no zone."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            value = aware.timestamp()
        seconds = float(value) if isinstance(value, (int, float)) else math.nan
    except (ValueError, OverflowError, OSError):
        seconds = math.nan
    if not abs(seconds) <= _LATEST:
        raise BadInput(f"item {place}: a time in seconds or ISO 8601 belongs here, not {_shown(value)}")
    return seconds


def _ids(values: Iterable[Any]) -> Iterable[str]:
    """All ids of all histories that can be read."""
    for value in values:
        for item in value if isinstance(value, (list, tuple)) else ():
            item = item.get("id") if isinstance(item, Mapping) else item
            if isinstance(item, (str, int, float)) and item == item:
                yield name_of(item)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

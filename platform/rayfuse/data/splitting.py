"""Assignment of training rows to the splits that are held out: by a hash of the row, by class, by group or by time.

A plan is made once from all rows, and then assigns each row by its values alone: in any process and any order. A split
by the hash of a row needs no other row; the others need a pass over the rows before.
"""

import datetime
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from rayfuse.data.group_balance import assign_groups
from rayfuse.data.rows import Row, hash_position
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.vocabulary import canonical_name
from rayfuse.spec.base import is_missing
from rayfuse.spec.job import Job

Place = tuple[str, float]
"""Stratum of a row, and its position there: rows are ordered by it and cut into splits."""
ReadPlace = Callable[[Row], Place]
"""Reads the place of a row. Raises InvalidInputError if the row has none."""

_ROW, _NUMBER, _DATE = "", "number", "date"


class SplitPlan(Protocol):
    """Assignment of rows to splits."""

    def split_at(self, place: Place) -> str:
        """Return the split of the rows at a place."""
        ...


@dataclass(frozen=True)
class CutPlan:
    """Splits that are cut from the order of the positions of each stratum."""

    order: Sequence[str]
    """Splits, from the lowest positions to the highest."""
    bounds: Mapping[str, Sequence[float]]
    """Highest position of each split except the last, by stratum."""

    def split_at(self, place: Place) -> str:
        """Return the split of the rows at a place."""
        stratum, position = place
        return self.order[bisect_left(self.bounds[stratum], position)]


@dataclass(frozen=True)
class GroupPlan:
    """Splits of whole groups."""

    held_out: Mapping[float, str]
    """Split of each group that is held out, by its position."""

    def split_at(self, place: Place) -> str:
        """Return the split of the rows at a place."""
        return self.held_out.get(place[1], "train")


@dataclass(frozen=True)
class PlaceReader:
    """Reader of the places of rows, for the split options of a job."""

    option: str
    """Key of `data` that names the column: `stratify`, `group`, `time`; empty for a split by the hash of a row."""
    column: str = ""
    """Column of the class, group or time."""
    class_column: str = ""
    """Column of the class of each row of a group, for `stratify` with `group`."""

    @classmethod
    def of(cls, job: Job) -> "PlaceReader":
        """Return the reader for a job."""
        columns = job.split_columns()
        if "group" in columns:
            return cls("group", columns["group"], columns.get("stratify", ""))
        for option, column in columns.items():
            return cls(option, column)
        return cls("")

    @property
    def columns(self) -> dict[str, str]:
        """All columns that it reads, by the key of `data` that names each."""
        columns = {self.option: self.column, "stratify" if self.class_column else "": self.class_column}
        return {option: column for option, column in columns.items() if option}

    def __call__(self, row: Row) -> Place:
        """Return the place of a row. Raises InvalidInputError if its group or time is missing or invalid."""
        if not self.option:
            return _ROW, row.position()
        value = row.values.get(self.column)
        if self.option == "stratify":
            return _name(value), row.position()
        if is_missing(value) or value == "":
            raise InvalidInputError(
                f"no `{self.column}`, by which the rows are split (data.{self.option}); fill it, or remove the row"
            )
        if self.option == "group":
            stratum = _name(row.values.get(self.class_column)) if self.class_column else _ROW
            return stratum, hash_position(_name(value).encode("utf-8", "surrogatepass"))
        try:
            return _parse_time(value)
        except (ValueError, TypeError, OverflowError):
            raise InvalidInputError(
                f"`{self.column}` (data.time) is {value!r}, not a time; write a number, or ISO 8601: 2024-05-31T12:00"
            ) from None


@dataclass(frozen=True)
class Splitter:
    """Assignment of the training rows of a job to training and the splits that are held out."""

    reader: PlaceReader
    """Reader of the places of rows."""
    plan: SplitPlan
    """Splits by place."""
    splits: Sequence[str]
    """Names of all splits: `train` first."""

    def split_of(self, row: Row) -> str:
        """Return the split of a row. Raises InvalidInputError if its group or time is missing or invalid."""
        return self.plan.split_at(self.reader(row))


def plan_by_rows(fractions: Mapping[str, float]) -> CutPlan:
    """Return the plan of a split by the hash of each row, which needs no pass over the rows."""
    order = [split for split in ("validation", "train", "test") if split == "train" or split in fractions]
    edges = {"validation": fractions.get("validation", 0.0), "train": 1 - fractions.get("test", 0.0)}
    # A position is below a fraction if it is at most the number before it.
    return CutPlan(order, {_ROW: [math.nextafter(edges[split], 0) for split in order[:-1]]})


def make_plan(reader: PlaceReader, places: "Places", fractions: Mapping[str, float]) -> SplitPlan:
    """Return the plan for the places of all rows. Raises DataError if a split would have no rows."""
    if reader.option == "group":
        return _plan_groups(reader, places, fractions)
    if reader.option == "time":
        return _plan_times(reader, places, fractions)
    return _plan_strata(places, fractions)


class Places:
    """Places of many rows: eight bytes for each."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(len(part) for parts in self._parts.values() for part in parts)

    @property
    def strata(self) -> list[str]:
        """Names of the strata, sorted."""
        return sorted(self._parts)

    def add(self, stratum: str, positions: np.ndarray) -> None:
        """Add the positions of rows of a stratum: float64 (rows,)."""
        self._parts.setdefault(stratum, []).append(positions)

    def positions(self, stratum: str) -> np.ndarray:
        """Return the positions of a stratum, sorted: float64 (rows,)."""
        return np.sort(np.concatenate(self._parts[stratum]))

    def group_counts(self) -> dict[float, dict[str, int]]:
        """Return the number of rows of each stratum at each position, by position in ascending order."""
        groups: dict[float, dict[str, int]] = {}
        for stratum in self.strata:
            found, counts = np.unique(self.positions(stratum), return_counts=True)
            for position, count in zip(found.tolist(), counts.tolist(), strict=True):
                groups.setdefault(position, {})[stratum] = count
        return dict(sorted(groups.items()))


def gather_places(rows: Iterable[Row], reader: ReadPlace) -> tuple[dict[str, list[float]], str]:
    """Return the positions of rows by stratum, without the rows that have none, and the first reason for that.

    Such rows are reported as invalid when the rows are stored.
    """
    places: dict[str, list[float]] = {}
    reason = ""
    for row in rows:
        try:
            stratum, position = reader(row)
        except InvalidInputError as error:
            reason = reason or f"{row.origin}: {error}"
            continue
        places.setdefault(stratum, []).append(position)
    return places, reason


def _plan_strata(places: Places, fractions: Mapping[str, float]) -> CutPlan:
    """Cut each class, so that splits have about the same share of it, and that training has some of it."""
    order = [split for split in ("validation", "train", "test") if split == "train" or split in fractions]
    bounds: dict[str, list[float]] = {}
    before = 0
    for stratum in places.strata:
        positions = places.positions(stratum)
        after = before + len(positions)
        wanted = {split: round(after * f) - round(before * f) for split, f in fractions.items()}
        while sum(wanted.values()) >= len(positions):
            wanted[max(wanted, key=lambda split: wanted[split])] -= 1
        bounds[stratum] = _cut(positions, wanted, order)
        before = after
    return CutPlan(order, bounds)


def _plan_times(reader: PlaceReader, places: Places, fractions: Mapping[str, float]) -> CutPlan:
    """Hold out the newest rows; rows of the same time are in the same split."""
    if len(places.strata) > 1:
        raise DataError(
            f"data.time: column `{reader.column}` has both numbers and dates; write one of them everywhere"
        )
    [stratum] = places.strata
    positions = places.positions(stratum)
    order = [split for split in ("train", "validation", "test") if split == "train" or split in fractions]
    wanted = {split: max(1, round(len(positions) * f)) for split, f in fractions.items()}
    if sum(wanted.values()) >= len(positions):
        raise DataError(
            f"data.time: {len(positions)} rows are too few for {', '.join(order)}; provide more rows"
        )
    return CutPlan(order, {stratum: _cut(positions, wanted, order)})


def _cut(positions: np.ndarray, wanted: Mapping[str, int], order: Sequence[str]) -> list[float]:
    """Return the highest position of each split but the last; equal positions at a cut stay in training if they can."""
    sizes = [wanted.get(split, len(positions) - sum(wanted.values())) for split in order]
    bounds: list[float] = []
    for end, following in zip(accumulate(sizes[:-1]), order[1:], strict=True):
        bound = float(positions[end - 1]) if end else -math.inf
        bounds.append(math.nextafter(float(positions[end]), -math.inf) if following == "train" else bound)
    return bounds


def _plan_groups(reader: PlaceReader, places: Places, fractions: Mapping[str, float]) -> GroupPlan:
    groups = places.group_counts()
    if len(groups) <= len(fractions):
        found = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
        raise DataError(
            f"data.group: column `{reader.column}` has {found}, and {len(fractions) + 1} splits need one each; "
            "use another column, or files of validation and test rows"
        )
    if not reader.class_column:
        return GroupPlan(_hold_out_groups({g: sum(of.values()) for g, of in groups.items()}, fractions))
    splits = ["train", *fractions]
    assigned = assign_groups(groups, [1 - sum(fractions.values()), *fractions.values()])
    return GroupPlan({group: splits[index] for group, index in assigned.items() if index})


def _hold_out_groups(counts: Mapping[float, int], fractions: Mapping[str, float]) -> dict[float, str]:
    """Hold out groups in the order of their hashes, as long as each brings a split closer to its share of the rows."""
    total = sum(counts.values())
    free = dict(counts)
    held_out: dict[float, str] = {}
    for number, (split, fraction) in enumerate(fractions.items(), start=1):
        reserve = len(fractions) - number + 1  # a group for training, and one for each split that follows
        missing = total * fraction
        chosen: list[float] = []
        for position, count in free.items():
            if len(free) - len(chosen) > reserve and count < 2 * missing:
                chosen.append(position)
                missing -= count
        chosen = chosen or [min(free, key=lambda position: free[position])]
        for position in chosen:
            held_out[position] = split
            del free[position]
    return held_out


class SplitSummary:
    """Numbers of the groups or classes of each split, for the report before training."""

    def __init__(self, reader: PlaceReader) -> None:
        self._reader = reader
        self._found: dict[str, Counter[str]] = {}
        self._times: dict[str, tuple[tuple[float, str], tuple[float, str]]] = {}

    def add(self, split: str, row: Row) -> None:
        """Count a row of a split."""
        value = row.values.get(self._reader.column)
        if self._reader.option == "time":
            found = self._reader(row)[1], str(value)
            first, last = self._times.get(split, (found, found))
            self._times[split] = min(first, found), max(last, found)
        else:
            self._found.setdefault(split, Counter())[_name(value)] += 1

    def lines(self) -> list[str]:
        """Return the line of the report; none for a split by the hash of a row."""
        column = self._reader.column
        if self._reader.option == "time":
            spans = [f"{split} {first[1]} to {last[1]}" for split, (first, last) in self._times.items()]
            return [f"split by time `{column}`: {', '.join(spans)}"]
        kind = "groups" if self._reader.option == "group" else "classes"
        sizes = ", ".join(f"{split} {len(found)} {kind}" for split, found in self._found.items())
        return [f"split by `{column}`: {sizes}"]


def _name(value: Any) -> str:
    """Return a class or group as text: 1, 1.0 and "1" are equal; null is a separate class."""
    if is_missing(value):
        return ""
    try:
        return canonical_name(value)
    except InvalidInputError:
        return str(value)


def _parse_time(value: Any) -> Place:
    """Return the kind of a time, and its seconds or number."""
    if isinstance(value, str):
        value = _text_to_time(value.strip())
    if isinstance(value, datetime.datetime):
        zoned = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return _DATE, zoned.timestamp()
    if isinstance(value, datetime.date):
        return _DATE, datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC).timestamp()
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return _NUMBER, number


def _text_to_time(text: str) -> float | datetime.datetime:
    try:
        return float(text)
    except ValueError:
        return datetime.datetime.fromisoformat(text)

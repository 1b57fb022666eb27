"""Folds of cross-validation: each row is in the test rows of exactly one of them."""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from rayfuse.data.group_balance import assign_groups
from rayfuse.data.splitting import CutPlan, GroupPlan, PlaceReader, Places, SplitPlan
from rayfuse.errors import DataError
from rayfuse.spec.job import DataConfig

_ORDER = ("validation", "train", "test", "validation", "train")
"""Splits of a fold, in the order of the positions: the validation rows follow the test rows, cyclically."""


def plan_fold(reader: PlaceReader, places: Places, data: DataConfig) -> SplitPlan:
    """Return the plan of `data.fold`, of `data.folds`. Raises DataError if a split would have no rows."""
    assert data.folds
    assert data.fold
    validation = data.fractions.get("validation", 0.0)
    if reader.option == "group":
        return _plan_groups(reader, places, data.fold, data.folds, validation)
    return _plan_strata(places, data.fold, data.folds, validation)


def _plan_strata(places: Places, fold: int, folds: int, fraction: float) -> CutPlan:
    """Cut each class into blocks that differ by at most one row, one of which is tested.

    A class of a single row, or of copies of one, is in the training rows of every fold.
    """
    bounds: dict[str, list[float]] = {}
    before = num_test = 0
    for stratum in places.strata:
        positions = places.positions(stratum)
        after = before + len(positions)
        start, end = _block(positions, before, fold, folds)
        if start == 0 and end == len(positions):
            start = end = 0
        wanted = round(after * fraction) - round(before * fraction)
        bounds[stratum] = _bounds(positions, start, end, wanted)
        num_test += end - start
        before = after
    if not num_test:
        raise DataError(
            f"data.folds: fold {fold} of {folds} has no rows: there are {before}, and copies of a row are in one fold; "
            "use fewer folds"
        )
    return CutPlan(_ORDER, bounds)


def _block(positions: np.ndarray, before: int, fold: int, folds: int) -> tuple[int, int]:
    """Return the first and last end of a fold's block of a class, as if the rows of all classes were dealt in turn."""
    after = before + len(positions)
    sizes = [len(range(before + (k - before) % folds, after, folds)) for k in range(folds)]
    ends = [0, *(_after_copies(positions, end) for end in accumulate(sizes))]
    return ends[fold - 1], ends[fold]


def _bounds(positions: np.ndarray, start: int, end: int, wanted: int) -> list[float]:
    """Return the highest position of each split of `_ORDER` but the last, for test rows from `start` to `end`."""
    rest = len(positions) - (end - start)
    wanted = max(0, min(wanted, rest - 1))
    following = min(wanted, len(positions) - end)
    ends = [
        _after_copies(positions, wanted - following),
        start,
        end,
        _after_copies(positions, end + following),
    ]
    if ends[0] + ends[3] - end >= rest:
        ends = [0, start, end, end]  # copies: none is left to train on
    return [float(positions[index - 1]) if index else -math.inf for index in ends]


def _after_copies(positions: np.ndarray, end: int) -> int:
    """Return an end that separates no rows of the same position, at or after `end`."""
    return int(np.searchsorted(positions, positions[end - 1], side="right")) if end else 0


def _plan_groups(reader: PlaceReader, places: Places, fold: int, folds: int, fraction: float) -> GroupPlan:
    groups = places.group_counts()
    if len(groups) < folds:
        raise DataError(_too_few_groups(reader, len(groups), folds))
    tested = [group for group, of in assign_groups(groups, [1 / folds] * folds).items() if of == fold - 1]
    held_out = dict.fromkeys(tested, "test")
    rest = {group: counts for group, counts in groups.items() if group not in held_out}
    if fraction:
        if len(rest) < 2:
            raise DataError(_too_few_groups(reader, len(groups), folds))
        share = fraction * _num_rows(list(groups.values())) / _num_rows(list(rest.values()))
        assigned = assign_groups(rest, [1 - share, share])
        held_out |= {group: "validation" for group, index in assigned.items() if index}
    return GroupPlan(held_out)


def _num_rows(groups: Sequence[dict[str, int]]) -> int:
    return sum(sum(counts.values()) for counts in groups)


def _too_few_groups(reader: PlaceReader, found: int, folds: int) -> str:
    return (
        f"data.group: column `{reader.column}` has {found} group{'s' * (found != 1)}, and {folds} folds need one each, "
        "and another one to validate on; use fewer folds, or another column"
    )

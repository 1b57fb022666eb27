"""Matching: whether two inputs belong together."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayfuse.errors import InsufficientRowsError, InvalidInputError
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import CellType
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import Mode, Target, TaskFitter, TaskRow, format_value
from rayfuse.spec.tasks.pairs import PairTaskConfig

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput

MATCHING_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "auc": "max",
    "ece": "min",
}


class MatchingTaskConfig(PairTaskConfig):
    """True if two inputs belong together: a sigmoid of the similarity of their vectors (Zhai et al., 2023)."""

    type: Literal["matching"]
    column: str | None = Field(None, min_length=1)
    """Column with the label of the pair: true or false, 1 or 0. By default every row is a true pair, and pairs of
    different rows are the negatives."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "int"} if self.column else {}

    @property
    def target_column(self) -> str | None:
        return self.column

    def metric_modes(self) -> dict[str, Mode]:
        return MATCHING_METRICS

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        if self.column is None:
            return 1.0
        value = values.get(self.column)
        truth = _parse_label(value)
        if truth is None:
            raise InvalidInputError(
                "the label is missing"
                if is_missing(value)
                else f"label {format_value(value)} is not true, false, 1 or 0; correct the row"
            )
        return truth

    def fitter(self) -> TaskFitter | None:
        return _PairCheck(self) if self.column is not None else None

    def summary(self, name: str) -> Summary | None:
        return (
            CountSummary(self._labels, partial(_describe_labels, name)) if self.column is not None else None
        )

    def _labels(self, row: TaskRow) -> list[float]:
        label = _parse_label(row.values.get(str(self.column)))
        return [] if label is None else [label]


def _describe_labels(name: str, counts: Counter[float]) -> list[str]:
    return [f"{name}: {counts[1.0]} true and {counts[0.0]} false pairs in train"]


def _parse_label(value: Any) -> float | None:
    """Return 1 or 0 for a label, None for any other value. In csv files `true` and `false` are texts."""
    if isinstance(value, str):
        return {"true": 1.0, "false": 0.0}.get(value.lower())
    return float(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


class _PairCheck(TaskFitter):
    """Check that the training rows hold true and false pairs."""

    def __init__(self, task: MatchingTaskConfig) -> None:
        self._task = task
        self._labels: set[float] = set()

    def partial_fit(self, row: TaskRow) -> None:
        label = _parse_label(row.values.get(str(self._task.column)))
        if label is not None:
            self._labels.add(label)

    def finalize(self) -> MatchingTaskConfig:
        if len(self._labels) == 1:
            raise InsufficientRowsError(
                f"column `{self._task.column}`: all training rows are {'true' if 1.0 in self._labels else 'false'} "
                "pairs, and both are needed; leave `column` out to match rows against pairs of different rows"
            )
        return self._task

"""Whether two inputs belong together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.tasks.base import Cell, Mode, Target, TaskRow, is_absent, shown
from rayfuse.spec.tasks.pairs import PairTask

MATCHING_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "auc": "max",
    "ece": "min",
}


class MatchingTask(PairTask):
    """Whether two inputs belong together: a sigmoid of the likeness of their vectors (Zhai et al., 2023)."""

    type: Literal["matching"]
    column: str | None = Field(None, min_length=1)
    """Column that says whether the row is a true pair: true or false, 1 or 0. Where absent, every row is one, and
    it is told from pairs of different rows."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "whole"} if self.column else {}

    @property
    def target_column(self) -> str | None:
        return self.column

    def metrics(self) -> dict[str, Mode]:
        return MATCHING_METRICS

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        if self.column is None:
            return 1.0
        value = values.get(self.column)
        truth = _truth(value)
        if truth is None:
            raise BadInput(
                "the label is missing"
                if is_absent(value)
                else f"label {shown(value)} is not true or false, or 1 or 0; correct the row"
            )
        return truth

    def fitted(self, rows: Sequence[TaskRow]) -> "MatchingTask":
        if self.column is not None and len(self._counts(rows)) == 1:
            [(only, _)] = self._counts(rows).items()
            raise DataError(
                f"column `{self.column}`: all training rows are {'true' if only else 'false'} pairs, and both are "
                "needed; leave `column` out to tell true pairs from pairs of different rows"
            )
        return self

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        if self.column is not None:
            counts = self._counts(rows)
            yield f"{name}: {counts[1.0]} true and {counts[0.0]} false pairs in train"

    def _counts(self, rows: Sequence[TaskRow]) -> Counter[float]:
        found = (_truth(row.values.get(str(self.column))) for row in rows)
        return Counter(truth for truth in found if truth is not None)


def _truth(value: Any) -> float | None:
    """1 or 0 for a label, None for what is neither. csv has no types: its `true` and `false` are texts."""
    if isinstance(value, str):
        return {"true": 1.0, "false": 0.0}.get(value.lower())
    return float(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None

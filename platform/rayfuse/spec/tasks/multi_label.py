"""Any number of several classes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from rayfuse.errors import BadInput
from rayfuse.spec.tasks.base import Cell, Mode, is_absent, shown
from rayfuse.spec.tasks.classes import ClassesTask

MULTI_LABEL_METRICS: dict[str, Mode] = {
    "loss": "min",
    "exact": "max",
    **{
        f"{kind}_{average}": "max" for kind in ("precision", "recall", "f1") for average in ("micro", "macro")
    },
    "map": "max",
    "ece": "min",
}


class MultiLabelTask(ClassesTask):
    """Any number of several classes, each yes or no: the column holds a list of labels."""

    type: Literal["multi_label"]
    separator: str | None = Field(None, min_length=1)
    """What stands between labels where rows hold them as one text, as in csv; an empty text is then no label."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which a class is answered."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "text" if self.separator else "whole"}

    def metrics(self) -> dict[str, Mode]:
        return MULTI_LABEL_METRICS

    def labels(self, value: Any) -> Iterable[Any]:
        if isinstance(value, (list, tuple)):
            return value
        if self.separator is None:
            return () if is_absent(value) else (value,)
        parts = [] if is_absent(value) else str(value).split(self.separator)
        return [part.strip() for part in parts if part.strip()]

    def target(self, value: Any) -> list[float]:
        """1 for each class that the row has, else 0. Raises BadInput where the labels are missing or no classes."""
        if self.separator is None and is_absent(value):
            raise BadInput("the labels are missing; write [] where there are none")
        if self.separator is None and not isinstance(value, (list, tuple)):
            raise BadInput(
                f"{shown(value)} is no list of labels; write a list, or name the `separator` between them"
            )
        there = {self.index(label) for label in self.labels(value)}
        return [float(i in there) for i in range(len(self.names))]

    def balanced_weights(self, counts: Counter[int], rows: int) -> list[float]:
        """How many rows lack each class for one that has it: the weight of its presence."""
        return [max(rows - counts[i], 1) / counts[i] if counts[i] else 1.0 for i in range(len(self.names))]

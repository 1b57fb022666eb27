"""Multi-label classification: any number of classes per row."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from rayfuse.errors import InvalidInputError
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import CellType, label_of_text
from rayfuse.spec.tasks.base import Mode, MultiHot, format_value
from rayfuse.spec.tasks.classes import BaseClassesTaskConfig

MULTI_LABEL_METRICS: dict[str, Mode] = {
    "loss": "min",
    "exact_match": "max",
    **{
        f"{kind}_{average}": "max" for kind in ("precision", "recall", "f1") for average in ("micro", "macro")
    },
    "map": "max",
    "ece": "min",
}


class MultiLabelTaskConfig(BaseClassesTaskConfig):
    """Any number of classes per row: the column holds a list of labels."""

    type: Literal["multi_label"]
    separator: str | None = Field(None, min_length=1)
    """Separator of labels in one text, as in csv; an empty text then means no labels."""
    min_frequency: int = Field(1, ge=1)
    """Number of training rows that a label must have to be a class; other labels are ignored if it is above 1."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Lowest probability of a predicted class."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "int"}

    def metric_modes(self) -> dict[str, Mode]:
        return MULTI_LABEL_METRICS

    @property
    def min_class_rows(self) -> int:
        return self.min_frequency

    def labels(self, value: Any) -> Iterable[Any]:
        if isinstance(value, (list, tuple)):
            return value
        if self.separator is None:
            return () if is_missing(value) else (value,)
        parts = [] if is_missing(value) else str(value).split(self.separator)
        return [str(label_of_text(part.strip())) for part in parts if part.strip()]

    def target(self, value: Any) -> MultiHot:
        """Return 1 for each class of the row, else 0. Raises InvalidInputError if labels are missing or not classes."""
        if self.separator is None and is_missing(value):
            raise InvalidInputError("the labels are missing; write [] if the row has none")
        if self.separator is None and not isinstance(value, (list, tuple)):
            raise InvalidInputError(
                f"{format_value(value)} is not a list of labels; write a list, or set `separator`"
            )
        labels = [label for label in self.labels(value) if self.min_frequency == 1 or self.is_class(label)]
        present = {self.class_index(label) for label in labels}
        return MultiHot(len(self.classes or ()), tuple(sorted(present)))

    def balanced_weights(self, counts: Counter[int], rows: int) -> list[float]:
        """Return the ratio of rows without each class to rows with it: the weight of its presence."""
        numbers = (counts[i] for i in range(len(self.classes or ())))
        return [max(rows - count, 1) / count if count else 1.0 for count in numbers]

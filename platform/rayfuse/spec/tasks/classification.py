"""Classification: one of several classes."""

from typing import Any, Literal

from rayfuse.spec.tasks.base import Mode
from rayfuse.spec.tasks.classes import BaseClassesTaskConfig

_AVERAGES = ("micro", "macro", "weighted")
CLASSIFICATION_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    **{f"{kind}_{average}": "max" for kind in ("precision", "recall", "f1") for average in _AVERAGES},
    "ece": "min",
}


class ClassificationTaskConfig(BaseClassesTaskConfig):
    """One of several classes."""

    type: Literal["classification"]

    def metric_modes(self) -> dict[str, Mode]:
        return CLASSIFICATION_METRICS

    def target(self, value: Any) -> int:
        """Return the index of a label. Raises InvalidInputError if it is not a class."""
        return self.class_index(value)

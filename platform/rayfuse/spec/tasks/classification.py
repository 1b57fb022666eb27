"""One of several classes."""

from typing import Any, Literal

from rayfuse.spec.tasks.base import Mode
from rayfuse.spec.tasks.classes import ClassesTask

_AVERAGES = ("micro", "macro", "weighted")
CLASSIFICATION_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    **{f"{kind}_{average}": "max" for kind in ("precision", "recall", "f1") for average in _AVERAGES},
    "ece": "min",
}


class ClassificationTask(ClassesTask):
    """One of several classes."""

    type: Literal["classification"]

    def metrics(self) -> dict[str, Mode]:
        return CLASSIFICATION_METRICS

    def target(self, value: Any) -> int:
        """The index of a label. Raises BadInput where it is no class."""
        return self.index(value)

"""Ordinal regression: one of several ordered classes."""

from collections.abc import Sequence
from typing import Any, Literal

from rayfuse.errors import DataError
from rayfuse.spec.tasks.base import Mode, format_value
from rayfuse.spec.tasks.classes import BaseClassesTaskConfig

ORDINAL_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "f1_macro": "max",
    "mae": "min",
    "kappa": "max",
    "ece": "min",
}


class OrdinalTaskConfig(BaseClassesTaskConfig):
    """One of several ordered classes, such as stars or grades: a continuation-ratio model (CORN, Shi et al., 2021)."""

    type: Literal["ordinal"]

    def metric_modes(self) -> dict[str, Mode]:
        return ORDINAL_METRICS

    def target(self, value: Any) -> int:
        """Return the index of a label. Raises InvalidInputError if it is not a class."""
        return self.class_index(value)

    def validate_found_classes(self, classes: Sequence[Any]) -> None:
        unordered = [label for label in classes if isinstance(label, str)]
        if unordered:
            raise DataError(
                f"column `{self.column}`: {format_value(unordered[0])} is a text, whose order is unknown; "
                "list all classes under `classes`, the lowest first"
            )

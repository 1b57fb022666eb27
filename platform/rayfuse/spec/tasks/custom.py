"""Options of custom tasks."""

from typing import Any, ClassVar

from pydantic import Field

from rayfuse.errors import InvalidInputError
from rayfuse.spec.base import Key, is_missing
from rayfuse.spec.cells import CellType
from rayfuse.spec.family import CustomConfig
from rayfuse.spec.tasks.base import ColumnTaskConfig, Mode, Target, format_value
from rayfuse.spec.tasks.numbers import to_finite_float


class CustomTaskConfig(CustomConfig, ColumnTaskConfig):
    """A subclass of rayfuse.model.tasks.TaskHead, by import path. Its column holds a number, or a list of numbers."""

    base_class: ClassVar[str] = "rayfuse.model.tasks.base:TaskHead"

    metrics: dict[Key, Mode] = Field(default_factory=dict)
    """Metrics that the head reports in addition to the loss, each with its mode, `max` or `min`."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "float"}

    def metric_modes(self) -> dict[str, Mode]:
        return {"loss": "min", **self.metrics}

    def target(self, value: Any) -> Target:
        """Return the number or numbers. Raises InvalidInputError if one is missing or not finite."""
        if is_missing(value):
            raise InvalidInputError("the target is missing")
        several = isinstance(value, (list, tuple))
        numbers = [to_finite_float(item) for item in (value if several else [value])]
        if not numbers or None in numbers:
            raise InvalidInputError(f"target {format_value(value)} is not a finite number, or a list of them")
        found = [number for number in numbers if number is not None]
        return found if several else found[0]

"""A task of one's own."""

from typing import Any

from pydantic import Field

from rayfuse.errors import BadInput
from rayfuse.spec.base import Key
from rayfuse.spec.custom import Custom
from rayfuse.spec.tasks.base import Cell, ColumnTask, Mode, Target, is_absent, shown
from rayfuse.spec.tasks.numbers import finite


class CustomTask(Custom, ColumnTask):
    """A subclass of rayfuse.model.tasks.TaskHead, by import path. Its column holds a number, or a list of numbers."""

    reports: dict[Key, Mode] = Field(default_factory=dict)
    """The metrics that its head gives beyond the loss, and whether more (`max`) or less (`min`) of each is better."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "number"}

    def metrics(self) -> dict[str, Mode]:
        return {"loss": "min", **self.reports}

    def target(self, value: Any) -> Target:
        """The number or numbers. Raises BadInput where one is not finite."""
        if is_absent(value):
            raise BadInput("the target is missing")
        several = isinstance(value, (list, tuple))
        numbers = [finite(item) for item in (value if several else [value])]
        if not numbers or None in numbers:
            raise BadInput(f"target {shown(value)} is not a finite number, or a list of them")
        found = [number for number in numbers if number is not None]
        return found if several else found[0]

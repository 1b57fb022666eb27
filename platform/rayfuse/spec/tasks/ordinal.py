"""One of several classes that have an order."""

from collections.abc import Sequence
from typing import Any, Literal

from rayfuse.errors import DataError
from rayfuse.spec.tasks.base import Mode, TaskRow, shown
from rayfuse.spec.tasks.classes import ClassesTask

ORDINAL_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "steps": "min",
    "kappa": "max",
    "ece": "min",
}


class OrdinalTask(ClassesTask):
    """One of several classes in order, as stars or grades: the proportional odds model (McCullagh, 1980)."""

    type: Literal["ordinal"]

    def metrics(self) -> dict[str, Mode]:
        return ORDINAL_METRICS

    def target(self, value: Any) -> int:
        """The index of a label. Raises BadInput where it is no class."""
        return self.index(value)

    def _found(self, rows: Sequence[TaskRow]) -> list[Any]:
        found = super()._found(rows)
        unordered = [label for label in found if isinstance(label, str)]
        if unordered:
            raise DataError(
                f"column `{self.column}`: {shown(unordered[0])} is a text, whose place in the order is not known; "
                "list all classes under `classes`, the lowest first"
            )
        return found

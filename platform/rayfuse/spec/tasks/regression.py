"""A number."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.tasks.base import Cell, ColumnTask, Mode, TaskRow, is_absent, shown
from rayfuse.spec.tasks.numbers import finite, mean_and_deviation

REGRESSION_METRICS: dict[str, Mode] = {"loss": "min", "mae": "min", "rmse": "min", "r2": "max"}


class RegressionTask(ColumnTask):
    """A number. It is standardised by the training rows' mean and deviation while training."""

    type: Literal["regression"]
    mean: float | None = None
    """Of the target; found in the training rows where absent."""
    deviation: float | None = Field(None, gt=0)
    """Standard deviation of the target; found in the training rows where absent."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "number"}

    def metrics(self) -> dict[str, Mode]:
        return REGRESSION_METRICS

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        yield f"{name}: mean {self.mean:.4g}, deviation {self.deviation:.4g} in train"

    def fitted(self, rows: Sequence[TaskRow]) -> Self:
        """This task with mean and deviation known: those given, else the ones of the rows."""
        if self.mean is not None and self.deviation is not None:
            return self
        found = (finite(row.values.get(self.column)) for row in rows)
        count, mean, deviation = mean_and_deviation(number for number in found if number is not None)
        if not count:
            raise DataError(f"column `{self.column}`: no numbers in the training rows")
        mean = mean if self.mean is None else self.mean
        deviation = (deviation or 1.0) if self.deviation is None else self.deviation
        return self.model_copy(update={"mean": mean, "deviation": deviation})

    def target(self, value: Any) -> float:
        """The number itself. Raises BadInput where it is not a finite number."""
        number = finite(value)
        if number is None:
            raise BadInput(
                "the number is missing"
                if is_absent(value)
                else f"target {shown(value)} is not a finite number"
            )
        return number

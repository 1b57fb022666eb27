"""Regression: a number."""

from typing import Any, Literal

from pydantic import Field

from rayfuse.errors import DataError, InsufficientRowsError, InvalidInputError
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import CellType, resembles_number
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import ColumnTaskConfig, Mode, TaskFitter, TaskRow, format_value
from rayfuse.spec.tasks.numbers import RunningMoments, to_finite_float

REGRESSION_METRICS: dict[str, Mode] = {
    "loss": "min",
    "mae": "min",
    "rmse": "min",
    "r2": "max",
    "pearson": "max",
}


class RegressionTaskConfig(ColumnTaskConfig):
    """A number, standardized by the mean and standard deviation of the training rows."""

    type: Literal["regression"]
    mean: float | None = None
    """Mean of the target; by default that of the training rows."""
    std: float | None = Field(None, gt=0)
    """Standard deviation of the target; by default that of the training rows."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "float"}

    def metric_modes(self) -> dict[str, Mode]:
        return REGRESSION_METRICS

    def summary(self, name: str) -> Summary:
        line = f"{name}: mean {self.mean:.4g}, standard deviation {self.std:.4g} in train"
        return CountSummary(lambda row: (), lambda counts: [line])

    def fitter(self) -> TaskFitter | None:
        return _MeanStdFitter(self) if self.mean is None or self.std is None else None

    def target(self, value: Any) -> float:
        """Return the number. Raises InvalidInputError if it is missing or not finite."""
        number = to_finite_float(value)
        if number is None:
            raise InvalidInputError(
                "the number is missing"
                if is_missing(value)
                else f"target {format_value(value)} is not a finite number"
            )
        return number


class _MeanStdFitter(TaskFitter):
    """Mean and standard deviation of the targets; values that the spec gives are kept."""

    def __init__(self, task: RegressionTaskConfig) -> None:
        self._task, self._moments = task, RunningMoments()
        self._first_value: Any = None

    def partial_fit(self, row: TaskRow) -> None:
        value = row.values.get(self._task.column)
        number = to_finite_float(value)
        if self._first_value is None and not is_missing(value):
            self._first_value = value
        if number is not None:
            self._moments.add(number)

    def finalize(self) -> RegressionTaskConfig:
        task, moments = self._task, self._moments
        if not moments.count:
            kind = InsufficientRowsError if self._first_value is None else DataError
            raise kind(self._no_numbers_message())
        mean = moments.mean if task.mean is None else task.mean
        std = (moments.std or 1.0) if task.std is None else task.std
        return task.model_copy(update={"mean": mean, "std": std})

    def _no_numbers_message(self) -> str:
        first = self._first_value
        marks = isinstance(first, str) and resembles_number(first)
        remedy = (
            "set `data.thousands` or `data.decimal`, or correct the cells" if marks else "check the column"
        )
        found = "all are missing" if first is None else f"the first value is {format_value(first)}"
        return f"column `{self._task.column}`: no numbers in the training rows, {found}; {remedy}"

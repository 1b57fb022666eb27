"""Options and targets that tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import ConfigDict, Field

from rayfuse.formatting import truncated_repr
from rayfuse.spec.base import JobSection, Problems, make_column_optional
from rayfuse.spec.cells import CellType
from rayfuse.spec.summary import Summary

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput
    from rayfuse.spec.job import Job

Mode = Literal["max", "min"]
"""Direction of a metric: higher or lower values are better."""


class MultiHot(NamedTuple):
    """A target of many numbers: 1 at some positions, 0 elsewhere."""

    size: int
    """Number of numbers."""
    positions: tuple[int, ...]
    """Positions of the ones, in ascending order."""


Target = float | list[float] | MultiHot
"""The target of a row: a number, or several (NaN for one that is not set)."""


class TaskRow(Protocol):
    """A row, as tasks read it."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Values by column."""
        ...

    @property
    def file(self) -> str:
        """The file that contains it."""
        ...

    @property
    def origin(self) -> str:
        """FILE:LINE."""
        ...


class TaskFitter(ABC):
    """Accumulator of what a task learns from the training rows, in a single pass."""

    @abstractmethod
    def partial_fit(self, row: TaskRow) -> None:
        """Add a training row; one without a valid target is ignored, since validation reports it."""

    @abstractmethod
    def finalize(self) -> Any:
        """Return the task, fitted. Raises DataError if the rows do not suffice."""


class BaseTaskConfig(JobSection):
    """Options of every task."""

    needs_column: ClassVar[bool] = False
    """True if it needs a `column`, which is by default the task's name."""
    weighted_rows: ClassVar[bool] = False
    """True if rows count in the mean loss of a batch by their `loss_weight`; else all count equally."""
    target_reader: ClassVar[str] = "rayfuse.data.targets:SpecTargetReader"
    """Import path of the `rayfuse.data.targets.TargetReader` of its targets, by default one that calls `read`."""

    type: str
    """Kind of task, or the import path of a custom one."""
    weight: Annotated[float, Field(gt=0)] | Literal["learned"] = 1.0
    """Factor of this task's loss in the sum over all tasks; `learned`: by its uncertainty (Kendall et al., 2018)."""

    @property
    def columns(self) -> dict[str, CellType]:
        """The columns that it reads → how their cells are parsed in a csv file."""
        raise NotImplementedError

    @property
    def target_column(self) -> str | None:
        """The column whose values the model predicts, which cannot be an input; None if there is none."""
        return None

    @property
    def group_column(self) -> str | None:
        """Rows with the same value in this column belong in one batch; None if it does not matter."""
        return None

    @property
    def streams_texts(self) -> bool:
        """True if endpoints write the task's texts token by token, and serve them under the OpenAI protocol."""
        return False

    def metric_modes(self) -> dict[str, Mode]:
        """Return the metrics that it reports, each with its mode."""
        raise NotImplementedError

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        """Return the target of a row. Raises InvalidInputError if it is missing or invalid.

        inputs: the job's inputs, for tasks that compare a target with the value of an input.
        """
        raise NotImplementedError

    def loss_weight(self, target: Target) -> float:
        """Return the weight of a row in the mean loss of a batch, in tasks with `weighted_rows`."""
        return 1.0

    def fitter(self) -> TaskFitter | None:
        """Return the accumulator of classes and statistics; None if nothing is learned from the training rows."""
        return None

    def fit(self, rows: Iterable[TaskRow]) -> Self:
        """Return the task fitted to training rows, which are read once. Raises DataError if they do not suffice."""
        fitter = self.fitter()
        if fitter is None:
            return self
        for row in rows:
            fitter.partial_fit(row)
        fitted: Self = fitter.finalize()
        return fitted

    def summary(self, name: str) -> Summary | None:
        """Return the accumulator of training rows for the log, None if there is none; `name` is the task's."""
        return None


class ColumnTaskConfig(BaseTaskConfig):
    """Options of a task with its target in one column."""

    model_config = ConfigDict(json_schema_extra=make_column_optional)

    needs_column: ClassVar[bool] = True

    column: str = Field(min_length=1)
    """Column with the target; by default the task's name."""

    @property
    def target_column(self) -> str | None:
        return self.column

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        return self.target(values.get(self.column))

    def target(self, value: Any) -> Target:
        """Return the target for a value of the column. Raises InvalidInputError if it is missing or invalid."""
        raise NotImplementedError


def validate_inputs(job: "Job", path: str, names: Sequence[str]) -> Problems:
    """Yield an error for each name that is not an input of the job."""
    for name in names:
        if name not in job.inputs:
            yield path, f"no input `{name}`; one of: {', '.join(job.inputs)}"


def format_value(value: Any) -> str:
    """Return the repr of a value, with at most 40 characters."""
    return truncated_repr(value, 40)

"""What every task of a spec offers: the columns it reads, what a row wants of it, and how it is judged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import ConfigDict, Field

from rayfuse.spec.base import Part, column_may_be_left_out

Mode = Literal["max", "min"]
Target = float | list[float]
"""What a row wants of a task: a number, or several (NaN for one that it leaves open)."""
Cell = Literal["whole", "number", "json", "text"]
"""What a cell of a csv file is read as, which has no types: the text itself where it is none of these.

`json` is a list or a mapping.
"""


class TaskRow(Protocol):
    """A row as tasks see it."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def file(self) -> str: ...

    @property
    def origin(self) -> str:
        """FILE:LINE."""
        ...


class BaseTask(Part):
    """What a model answers."""

    weight: Annotated[float, Field(gt=0)] | Literal["learned"] = 1.0
    """Factor of this task's loss in the sum over all tasks; `learned`: by its own uncertainty (Kendall et al., 2018)."""

    @property
    def columns(self) -> dict[str, Cell]:
        """The columns that it reads, and what their cells are in a csv file."""
        raise NotImplementedError

    @property
    def target_column(self) -> str | None:
        """The column whose values the model answers, which can be no input; None where there is none."""
        return None

    @property
    def group_column(self) -> str | None:
        """Rows with the same value there should meet in one batch; None where it does not matter."""
        return None

    def metrics(self) -> dict[str, Mode]:
        """The metrics that it reports, and whether more or less of each is better."""
        raise NotImplementedError

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        """The target of a row. Raises BadInput where the row has none that can be used.

        inputs: the job's inputs, for tasks that compare a target with what its input holds.
        """
        raise NotImplementedError

    def fitted(self, rows: Sequence[TaskRow]) -> Self:
        """This task with what it learns from the training rows. Raises DataError where they teach nothing."""
        return self

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        """Lines that tell people of the training rows; `name` is the task's."""
        return ()


class ColumnTask(BaseTask):
    """A task whose target stands in one column."""

    model_config = ConfigDict(json_schema_extra=column_may_be_left_out)

    column: str = Field(min_length=1)
    """Column that holds the target; the task's own name where absent."""

    @property
    def target_column(self) -> str | None:
        return self.column

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        return self.target(values.get(self.column))

    def target(self, value: Any) -> Target:
        """The target that a value of its column means. Raises BadInput where it means none."""
        raise NotImplementedError


def input_problems(job: Any, path: str, names: Sequence[str]) -> Iterable[tuple[str, str]]:
    """What is wrong with the inputs that a task names."""
    for name in names:
        if name not in job.inputs:
            yield path, f"no input is called `{name}`; one of: {', '.join(job.inputs)}"


def is_absent(value: Any) -> bool:
    """Null, or the NaN that tables use for null."""
    return value is None or value != value


def shown(value: Any) -> str:
    """A value in a message: not too long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"

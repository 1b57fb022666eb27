"""What a model answers, and the metrics by which each kind of task is judged."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.base import Part, column_may_be_left_out

Mode = Literal["max", "min"]
Target = float | list[float]
"""What a row wants of a task: a number, or several (NaN for one that it leaves open)."""
Cell = Literal["whole", "number", "json", "text"]
"""What a cell of a csv file is read as, which has no types: the text itself where it is none of these.

`json` is a list or a mapping."""

_AVERAGES = ("micro", "macro", "weighted")
CLASSIFICATION_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    **{f"{kind}_{average}": "max" for kind in ("precision", "recall", "f1") for average in _AVERAGES},
}
_LARGEST = 3.4e38  # what float32 holds
_CLASSES_SHOWN = 10

REGRESSION_METRICS: dict[str, Mode] = {"loss": "min", "mae": "min", "rmse": "min", "r2": "max"}


class _Task(Part):
    model_config = ConfigDict(json_schema_extra=column_may_be_left_out)

    column: str = Field(min_length=1)
    """Column that holds the target; the task's own name where absent."""
    weight: Annotated[float, Field(gt=0)] | Literal["learned"] = 1.0
    """Factor of this task's loss in the sum over all tasks; `learned`: by its own uncertainty (Kendall et al., 2018)."""

    @property
    def columns(self) -> dict[str, Cell]:
        """The columns that it reads, and what their cells are in a csv file."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Mode]:
        """The metrics that it reports, and whether more or less of each is better."""
        raise NotImplementedError

    def read(self, values: Mapping[str, Any]) -> Target:
        """The target of a row. Raises BadInput where the row has none that can be used."""
        return self.target(values.get(self.column))

    def target(self, value: Any) -> Target:
        """The target that a value of its column means. Raises BadInput where it means none."""
        raise NotImplementedError

    def fitted(self, values: Iterable[Any]) -> Self:
        """This task with what it learns from the training rows' values of its column."""
        return self

    def describe(self, name: str, values: Sequence[Any]) -> Iterable[str]:
        """Lines that tell people of the training rows' values of its column; `name` is the task's."""
        return ()


class ClassificationTask(_Task):
    """One of several classes."""

    type: Literal["classification"]
    classes: list[str | int | bool] | None = Field(None, min_length=2)
    """All classes, in order; found in the training rows (sorted) where absent."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "whole"}

    def metrics(self) -> dict[str, Mode]:
        return CLASSIFICATION_METRICS

    def describe(self, name: str, values: Sequence[Any]) -> Iterable[str]:
        classes = [repr(known) for known in self.classes or []]
        counts = Counter(classes[self.target(value)] for value in values)
        yield f"{name}: {len(counts)} classes in train; {_imbalance(counts)}"
        absent = [known for known in classes if known not in counts]
        if absent:
            yield f"WARNING {name}: no usable train row is of class {', '.join(absent)}"

    def fitted(self, values: Iterable[Any]) -> Self:
        """This task with its classes known: those listed, else all that occur in `values`, sorted."""
        if self.classes is not None:
            return self
        labels = ((type(label), label) for label in map(_label, values) if _may_be_class(label))
        found = [label for _, label in sorted(set(labels), key=lambda pair: (str(pair[0]), pair[1]))]
        alike = _same_text(found)
        if alike:
            raise DataError(
                f"column `{self.column}`: holds {alike[0]!r} and {alike[1]!r}; write one of them everywhere"
            )
        if len(found) < 2:
            raise DataError(
                f"column `{self.column}`: {len(found)} classes in the training rows, at least 2 are needed; "
                "a class is a text, a whole number or true and false"
            )
        return self.model_copy(update={"classes": found})

    def target(self, value: Any) -> int:
        """The index of a label. Raises BadInput where it is no class."""
        label = _label(value)
        try:
            return self._index[type(label), label]
        except (KeyError, TypeError):
            if _is_absent(value):
                raise BadInput("the label is missing") from None
            raise BadInput(
                f"label {_shown(value)} is not one of the {len(self._index)} classes: {self._listed}; "
                "correct the row, or list the class under `classes`"
            ) from None

    @cached_property
    def _index(self) -> dict[tuple[Any, Any], int]:
        return {(type(known), known): i for i, known in enumerate(self.classes or ())}

    @property
    def _listed(self) -> str:
        classes = self.classes or []
        more = ", …" if len(classes) > _CLASSES_SHOWN else ""
        return ", ".join(map(_shown, classes[:_CLASSES_SHOWN])) + more

    @model_validator(mode="after")
    def _distinct(self) -> "ClassificationTask":
        alike = _same_text(self.classes or [])
        if alike:
            raise PydanticCustomError(
                "classes",
                "{first} and {second} would have the same name in an answer",
                {"first": repr(alike[0]), "second": repr(alike[1]), "path": "classes"},
            )
        return self


def _imbalance(counts: Counter[str]) -> str:
    (most, most_n), (least, least_n) = counts.most_common(1)[0], counts.most_common()[-1]
    total = sum(counts.values())
    return (
        f"most common {most} ({most_n / total:.1%}), least {least} ({least_n / total:.1%}), "
        f"ratio {most_n / least_n:.1f}"
    )


def _label(value: Any) -> Any:
    """Tables write a whole number as 3.0 where a cell of its column is empty."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _may_be_class(value: Any) -> bool:
    return isinstance(value, (int, bool)) or (isinstance(value, str) and _is_unicode(value))


def _is_unicode(text: str) -> bool:
    """JSON can hold half of a surrogate pair, which no file or reply can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same_text(classes: list[Any]) -> list[Any]:
    """The first two classes that answers, which name classes by their text, could not tell apart."""
    seen: dict[str, Any] = {}
    for known in classes:
        if str(known) in seen:
            return [seen[str(known)], known]
        seen[str(known)] = known
    return []


def _is_absent(value: Any) -> bool:
    return value is None or value != value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


class RegressionTask(_Task):
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

    def describe(self, name: str, values: Sequence[Any]) -> Iterable[str]:
        yield f"{name}: mean {self.mean:.4g}, deviation {self.deviation:.4g} in train"

    def fitted(self, values: Iterable[Any]) -> Self:
        """This task with mean and deviation known: those given, else the ones of `values`."""
        if self.mean is not None and self.deviation is not None:
            return self
        numbers = [number for number in map(_number, values) if number is not None]
        if not numbers:
            raise DataError(f"column `{self.column}`: no numbers in the training rows")
        mean = fmean(numbers) if self.mean is None else self.mean
        deviation = (pstdev(numbers) or 1.0) if self.deviation is None else self.deviation
        return self.model_copy(update={"mean": mean, "deviation": deviation})

    def target(self, value: Any) -> float:
        """The number itself. Raises BadInput where it is not a finite number."""
        number = _number(value)
        if number is None:
            raise BadInput(
                "the number is missing"
                if _is_absent(value)
                else f"target {_shown(value)} is not a finite number"
            )
        return number


def _number(value: Any) -> float | None:
    """A finite number that float32 can hold, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if abs(number) <= _LARGEST else None


Task = Annotated[ClassificationTask | RegressionTask, Field(discriminator="type")]

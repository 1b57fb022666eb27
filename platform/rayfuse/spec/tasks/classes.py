"""Classes: found in rows, told apart by type and text, weighted. What several kinds of task share."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.base import Part
from rayfuse.spec.tasks.base import Cell, ColumnTask, TaskRow, is_absent, shown

_CLASSES_SHOWN = 10
_KINDS = {bool: "true or false", int: "a whole number", float: "a number with a fraction", str: "a text"}

Labelled = tuple[Any, TaskRow]
"""A label and the row that holds it."""
Weights = dict[str, Annotated[float, Field(gt=0)]]


def _balanced_or_mapping(value: Any) -> str:
    return "balanced" if isinstance(value, str) else "mapping"


ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("balanced")] | Annotated[Weights, Tag("mapping")],
    Discriminator(_balanced_or_mapping),
]


class ClassLoss(Part):
    """How a loss over classes treats rare, easy and doubtful rows."""

    class_weights: ClassWeights | None = None
    """Factor of the loss of each class, by name (1 where left out); `balanced`: by how rare each is in training rows."""
    focal: float = Field(0.0, ge=0, le=10)
    """Above 0, rows that are easy count less: the loss times (1 - probability of the truth) ^ focal (Lin et al., 2017)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the truth that is spread over all classes (Szegedy et al., 2016)."""

    def weights_of(self, names: Sequence[str]) -> list[float] | None:
        """The weight of each class, in order; None where all count the same."""
        if not isinstance(self.class_weights, dict):
            return None
        return [self.class_weights.get(name, 1.0) for name in names]


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights by which classes that occur `counts` times weigh the same in sum; 1 for one that never occurs."""
    there = sum(count > 0 for count in counts)
    return [sum(counts) / (there * count) if count else 1.0 for count in counts]


def refuse_unknown_weights(weights: Any, names: Sequence[str]) -> None:
    """Raise DataError where weights are given for classes that are none."""
    unknown = [name for name in weights if name not in names] if isinstance(weights, dict) else []
    if unknown:
        raise DataError(
            f"class_weights: no class is called {shown(unknown[0])}; there are: {listed(list(names))}"
        )


def listed(classes: Sequence[Any]) -> str:
    """The first classes, for a message."""
    more = ", …" if len(classes) > _CLASSES_SHOWN else ""
    return ", ".join(map(shown, classes[:_CLASSES_SHOWN])) + more


def normal(value: Any) -> Any:
    """A label as it is compared: tables write a whole number as 3.0 where a cell of its column is empty."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def found_classes(column: str, labels: Iterable[Labelled]) -> list[Any]:
    """All classes that occur, sorted. Raises DataError where they are fewer than two, or their type is in doubt."""
    kinds: dict[str, dict[type, Labelled]] = {}
    first: dict[tuple[type, Any], TaskRow] = {}
    for value, row in labels:
        label = normal(value)
        if is_absent(label):
            continue
        kinds.setdefault(row.file, {}).setdefault(type(label), (label, row))
        if _may_be_class(label):
            first.setdefault((type(label), label), row)
    found = [label for _, label in sorted(first, key=lambda pair: (str(pair[0]), pair[1]))]
    alike = same_text(found)
    if alike:
        places = [f"{label!r} ({first[type(label), label].origin})" for label in alike]
        raise DataError(
            f"column `{column}`: holds {' and '.join(places)}, one class in two types; "
            "write one of them everywhere"
        )
    _refuse_changing_type(column, kinds)
    if len(found) < 2:
        only = f" ({shown(found[0])})" if found else ""
        raise DataError(
            f"column `{column}`: {len(found)} classes{only} in the training rows, at least 2 are needed; "
            "a class is a text, a whole number or true and false"
        )
    return found


def _refuse_changing_type(column: str, kinds: Mapping[str, Mapping[type, Labelled]]) -> None:
    """Files that have no type of label in common were hardly meant so."""
    files = list(kinds.values())
    for other in files[1:]:
        if not set(files[0]) & set(other):
            (one, here), (two, there) = next(iter(files[0].values())), next(iter(other.values()))
            raise DataError(
                f"column `{column}`: {shown(one)} ({here.origin}) is {_kind(one)}, {shown(two)} ({there.origin}) "
                f"is {_kind(two)}; write the labels in one type in all files, or list all under `classes`"
            )


def _kind(label: Any) -> str:
    return _KINDS.get(type(label), f"a {type(label).__name__}")


def _may_be_class(value: Any) -> bool:
    return isinstance(value, (int, bool)) or (isinstance(value, str) and _is_unicode(value))


def _is_unicode(text: str) -> bool:
    """JSON can hold half of a surrogate pair, which no file or reply can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def same_text(classes: Sequence[Any]) -> list[Any]:
    """The first two classes that answers, which name classes by their text, could not tell apart."""
    seen: dict[str, Any] = {}
    for known in classes:
        if str(known) in seen:
            return [seen[str(known)], known]
        seen[str(known)] = known
    return []


class ClassesTask(ColumnTask, ClassLoss):
    """A task over classes."""

    classes: list[str | int | bool] | None = Field(None, min_length=2)
    """All classes, in order; found in the training rows (sorted) where absent."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "whole"}

    @property
    def names(self) -> list[str]:
        """The classes as answers name them."""
        return [str(known) for known in self.classes or ()]

    def labels(self, value: Any) -> Iterable[Any]:
        """The labels that a value of its column holds."""
        return (value,)

    def index(self, value: Any) -> int:
        """The number of a label's class. Raises BadInput where it is no class."""
        label = normal(value)
        try:
            return self._index[type(label), label]
        except (KeyError, TypeError):
            if is_absent(value):
                raise BadInput("the label is missing") from None
            raise BadInput(
                f"label {shown(value)} is not one of the {len(self._index)} classes: {listed(self.classes or [])}; "
                + self._remedy(label)
            ) from None

    def _remedy(self, label: Any) -> str:
        alike = [known for known in self.classes or () if str(known) == str(label)]
        if alike:
            return f"the class {alike[0]!r} is {_kind(alike[0])}, this is {_kind(label)}; write it the same everywhere"
        return "correct the row, or list the class under `classes`"

    def fitted(self, rows: Sequence[TaskRow]) -> Self:
        """This task with its classes known: those listed, else all that occur, sorted; and with their weights."""
        task = self if self.classes is not None else self.model_copy(update={"classes": self._found(rows)})
        refuse_unknown_weights(task.class_weights, task.names)
        if task.class_weights != "balanced":
            return task
        weights = task.balanced_weights(Counter(i for row in rows for i in task._known(row)), len(rows))
        return task.model_copy(update={"class_weights": dict(zip(task.names, weights, strict=True))})

    def balanced_weights(self, counts: Counter[int], rows: int) -> list[float]:
        """The weight of each class: `counts` are those of the classes of all labels of so many rows."""
        return balanced([counts[i] for i in range(len(self.names))])

    def _found(self, rows: Sequence[TaskRow]) -> list[Any]:
        return found_classes(self.column, self._labelled(rows))

    def _labelled(self, rows: Sequence[TaskRow]) -> Iterator[Labelled]:
        return ((label, row) for row in rows for label in self.labels(row.values.get(self.column)))

    def _known(self, row: TaskRow) -> Iterator[int]:
        for label in self.labels(row.values.get(self.column)):
            try:
                yield self.index(label)
            except BadInput:  # found again when all rows are checked
                continue

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        classes = [repr(known) for known in self.classes or []]
        counts = Counter(classes[index] for row in rows for index in self._known(row))
        if counts:
            yield f"{name}: {len(counts)} classes in train; {_imbalance(counts)}"
        absent = [known for known in classes if known not in counts]
        if absent:
            yield f"WARNING {name}: no usable train row is of class {', '.join(absent)}"

    @cached_property
    def _index(self) -> dict[tuple[Any, Any], int]:
        return {(type(known), known): i for i, known in enumerate(self.classes or ())}

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        alike = same_text(self.classes or [])
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

"""Classes: collection from rows, identity by type and text, and weights. Shared by several kinds of task."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.base import JobSection, is_missing
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import CellType, ColumnTaskConfig, TaskFitter, TaskRow, format_value

_MAX_CLASSES_SHOWN = 10
_TYPE_DESCRIPTIONS = {
    bool: "true or false",
    int: "an integer",
    float: "a decimal number",
    str: "a text",
}

LabeledRow = tuple[Any, TaskRow]
"""A label and its row."""
ClassWeightMap = dict[str, Annotated[float, Field(gt=0)]]


def _balanced_or_mapping(value: Any) -> str:
    return "balanced" if isinstance(value, str) else "mapping"


ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("balanced")] | Annotated[ClassWeightMap, Tag("mapping")],
    Discriminator(_balanced_or_mapping),
]


class ClassLossConfig(JobSection):
    """Options of a loss over classes: weights of rare classes and easy rows, and label smoothing."""

    class_weights: ClassWeights | None = None
    """Factor of the loss of each class, by name (by default 1); `balanced`: inversely proportional to its frequency in the
    training rows."""
    focal_gamma: float = Field(0.0, ge=0, le=10)
    """Focal loss (Lin et al., 2017): the loss is multiplied by (1 - probability of the true class) ^ focal_gamma, so that
    easy rows count less; 0 for no factor."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Fraction of the target that is spread evenly over all classes (Szegedy et al., 2016)."""

    def weights_of(self, names: Sequence[str]) -> list[float] | None:
        """Return the weight of each class, in order; None if all are equal."""
        if not isinstance(self.class_weights, dict):
            return None
        return [self.class_weights.get(name, 1.0) for name in names]


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Return weights with which classes that occur `counts` times count equally in sum; 1 for one that never occurs."""
    occurring = sum(count > 0 for count in counts)
    return [sum(counts) / (occurring * count) if count else 1.0 for count in counts]


def check_class_weights(weights: Any, names: Sequence[str]) -> None:
    """Raise DataError if a weight is given for a class that does not exist."""
    unknown = [name for name in weights if name not in names] if isinstance(weights, dict) else []
    if unknown:
        raise DataError(
            f"class_weights: {format_value(unknown[0])} is not a class; one of: {format_classes(list(names))}"
        )


def format_classes(classes: Sequence[Any]) -> str:
    """Return the first classes, for a message."""
    more = ", …" if len(classes) > _MAX_CLASSES_SHOWN else ""
    return ", ".join(map(format_value, classes[:_MAX_CLASSES_SHOWN])) + more


def normalize_label(value: Any) -> Any:
    """Return a label with integral floats as int: tables write 3 as 3.0 if a cell of the column is empty."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ClassesFitter(TaskFitter):
    """Classes of a task: those listed, or all labels that occur, sorted; and their balanced weights."""

    def __init__(self, task: "BaseClassesTaskConfig") -> None:
        self._task = task
        self._types: dict[str, dict[type, LabeledRow]] = {}
        self._first: dict[tuple[type, Any], TaskRow] = {}
        self._counts: Counter[tuple[type, Any]] = Counter()
        self._num_rows = 0

    def partial_fit(self, row: TaskRow) -> None:
        self._num_rows += 1
        for value in self._task.labels(row.values.get(self._task.column)):
            label = normalize_label(value)
            if is_missing(label):
                continue
            self._types.setdefault(row.file, {}).setdefault(type(label), (label, row))
            if _is_valid_label(label):
                self._first.setdefault((type(label), label), row)
                self._counts[type(label), label] += 1

    def finalize(self) -> "BaseClassesTaskConfig":
        task = self._task
        if task.classes is None:
            task = task.model_copy(update={"classes": self._collect_classes()})
        check_class_weights(task.class_weights, task.class_names)
        if task.class_weights != "balanced":
            return task
        classes = enumerate(task.classes or ())
        counts = Counter({index: self._counts[type(label), label] for index, label in classes})
        weights = task.balanced_weights(counts, self._num_rows)
        return task.model_copy(update={"class_weights": dict(zip(task.class_names, weights, strict=True))})

    def _collect_classes(self) -> list[Any]:
        """Return all classes, sorted. Raises DataError if they are fewer than two, or of ambiguous types."""
        column = self._task.column
        found = [label for _, label in sorted(self._first, key=lambda pair: (str(pair[0]), pair[1]))]
        alike = find_ambiguous_labels(found)
        if alike:
            places = [f"{label!r} ({self._first[type(label), label].origin})" for label in alike]
            raise DataError(
                f"column `{column}`: holds {' and '.join(places)}, one class in two types; "
                "write one of them everywhere"
            )
        _reject_mixed_types(column, self._types)
        if len(found) < 2:
            number = f"one class ({format_value(found[0])})" if found else "no class"
            raise DataError(
                f"column `{column}`: {number} in the training rows, at least 2 are needed; "
                f"a class is a text, an integer, or true and false{self._format_invalid_label()}"
            )
        self._task.validate_found_classes(found)
        return found

    def _format_invalid_label(self) -> str:
        labels = [label for of_file in self._types.values() for label, _ in of_file.values()]
        invalid = [label for label in labels if not _is_valid_label(label)]
        return f", not {format_value(invalid[0])}" if invalid else ""


def _reject_mixed_types(column: str, kinds: Mapping[str, Mapping[type, LabeledRow]]) -> None:
    """Raise DataError if two files have no type of label in common."""
    files = list(kinds.values())
    for other in files[1:]:
        if not set(files[0]) & set(other):
            (one, here), (two, there) = next(iter(files[0].values())), next(iter(other.values()))
            raise DataError(
                f"column `{column}`: {format_value(one)} ({here.origin}) is {_describe_type(one)}, {format_value(two)} ({there.origin}) "
                f"is {_describe_type(two)}; write the labels in one type in all files, or list all under `classes`"
            )


def _describe_type(label: Any) -> str:
    return _TYPE_DESCRIPTIONS.get(type(label), f"a {type(label).__name__}")


def _is_valid_label(value: Any) -> bool:
    return isinstance(value, (int, bool)) or (isinstance(value, str) and _is_unicode(value))


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON can hold half of a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_ambiguous_labels(classes: Sequence[Any]) -> list[Any]:
    """Return the first two classes with the same text, which is how predictions name classes; [] if there are none."""
    seen: dict[str, Any] = {}
    for known in classes:
        if str(known) in seen:
            return [seen[str(known)], known]
        seen[str(known)] = known
    return []


class BaseClassesTaskConfig(ColumnTaskConfig, ClassLossConfig):
    """Options of a task over classes."""

    classes: list[str | int | bool] | None = Field(None, min_length=2)
    """All classes, in order; by default those of the training rows, sorted."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "int"}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in predictions."""
        return [str(known) for known in self.classes or ()]

    def labels(self, value: Any) -> Iterable[Any]:
        """Return the labels in a value of the column."""
        return (value,)

    def class_index(self, value: Any) -> int:
        """Return the index of a label's class. Raises InvalidInputError if it is missing or not a class."""
        label = normalize_label(value)
        try:
            return self._index[type(label), label]
        except (KeyError, TypeError):
            if is_missing(value):
                raise InvalidInputError("the label is missing") from None
            raise InvalidInputError(
                f"label {format_value(value)} is not one of the {len(self._index)} classes: {format_classes(self.classes or [])}; "
                + self._remedy(label)
            ) from None

    def _remedy(self, label: Any) -> str:
        alike = [known for known in self.classes or () if str(known) == str(label)]
        if alike:
            return f"the class {alike[0]!r} is {_describe_type(alike[0])}, this is {_describe_type(label)}; write the same type everywhere"
        return "correct the row, or add the class to `classes`"

    def fitter(self) -> ClassesFitter | None:
        if self.classes is None or self.class_weights == "balanced":
            return ClassesFitter(self)
        check_class_weights(self.class_weights, self.class_names)
        return None

    def validate_found_classes(self, classes: Sequence[Any]) -> None:
        """Raise DataError if classes found in the training rows must be listed by the user instead."""

    def balanced_weights(self, counts: Counter[int], rows: int) -> list[float]:
        """Return the weight of each class, from the number of labels of each and the number of rows."""
        return balanced_class_weights([counts[i] for i in range(len(self.class_names))])

    def _iter_class_indices(self, row: TaskRow) -> Iterator[int]:
        for label in self.labels(row.values.get(self.column)):
            try:
                yield self.class_index(label)
            except InvalidInputError:  # reported when all rows are validated
                continue

    def summary(self, name: str) -> Summary:
        return CountSummary(self._iter_class_indices, partial(self._describe_counts, name))

    def _describe_counts(self, name: str, counts: Counter[int]) -> Iterator[str]:
        classes = [repr(known) for known in self.classes or []]
        if counts:
            by_name = Counter({classes[index]: count for index, count in counts.items()})
            yield f"{name}: {len(counts)} classes in train; {_imbalance(by_name)}"
        absent = [known for index, known in enumerate(classes) if index not in counts]
        if absent:
            yield f"WARNING {name}: no valid train row has class {', '.join(absent)}"

    @cached_property
    def _index(self) -> dict[tuple[Any, Any], int]:
        return {(type(known), known): i for i, known in enumerate(self.classes or ())}

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        alike = find_ambiguous_labels(self.classes or [])
        if alike:
            raise PydanticCustomError(
                "classes",
                "{first} and {second} have the same name in predictions; rename one",
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

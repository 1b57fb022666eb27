"""Classes: collection from rows, identity by type and text, and weights. Shared by several kinds of task."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.errors import DataError, InsufficientRowsError, InvalidInputError
from rayfuse.spec.base import JobSection, is_missing
from rayfuse.spec.cells import CellType, canonical_text, label_of_text
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import ColumnTaskConfig, TaskFitter, TaskRow, format_value

_MAX_CLASSES_SHOWN = 10
MAX_LISTED_CLASSES = 100
"""Number of classes up to which responses and their schemas list each class."""
_TOP_SCORES = 20
"""Number of classes in the scores of a prediction over more than `MAX_LISTED_CLASSES`."""
_MISSING_LABEL = "the label is missing (cells such as NA and None are missing in csv; list those that are in `data.missing_values`)"
_TYPE_DESCRIPTIONS = {
    bool: "true or false",
    int: "an integer",
    float: "a decimal number",
    str: "a text",
}

_YAML_BOOLEANS = ("yes", "no", "on", "off", "true", "false", "y", "n")
"""Words that YAML 1.1 reads as booleans, as `yaml.safe_load` does; a spec file only true and false."""

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


def check_class_weights(weights: Any, names: Sequence[str], kind: type[DataError] = DataError) -> None:
    """Raise an error, by default DataError, if a weight is given for a class that does not exist."""
    known = set(names)
    unknown = [name for name in weights if name not in known] if isinstance(weights, dict) else []
    if unknown:
        raise kind(
            f"class_weights: {format_value(unknown[0])} is not a class; one of: {format_classes(list(names))}"
        )


def format_classes(classes: Sequence[Any]) -> str:
    """Return the first classes, for a message."""
    more = ", …" if len(classes) > _MAX_CLASSES_SHOWN else ""
    return ", ".join(map(format_value, classes[:_MAX_CLASSES_SHOWN])) + more


def normalize_label(value: Any) -> Any:
    """Return a label with whole numbers as int: tables write 3 as 3.0 if a cell is empty, databases as a decimal.

    Texts have no white space around them and are in Unicode NFC.
    """
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    return value


class ClassesFitter(TaskFitter):
    """Classes of a task: those listed, or all labels that occur, sorted; and their balanced weights."""

    def __init__(self, task: "BaseClassesTaskConfig") -> None:
        self._task = task
        self._types: dict[str, dict[type, LabeledRow]] = {}
        self._origins: dict[tuple[type, Any], str] = {}
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
                key = (type(label), label)
                if key not in self._origins:
                    self._origins[key] = row.origin
                self._counts[key] += 1

    def finalize(self) -> "BaseClassesTaskConfig":
        task = self._task
        self._reject_booleans_of_yaml()
        if task.classes is None:
            task = task.model_copy(update={"classes": self._collect_classes()})
        check_class_weights(task.class_weights, task.class_names, InsufficientRowsError)
        if task.class_weights != "balanced":
            return task
        classes = enumerate(map(normalize_label, task.classes or ()))
        counts = Counter({index: self._counts[type(label), label] for index, label in classes})
        weights = task.balanced_weights(counts, self._num_rows)
        return task.model_copy(update={"class_weights": dict(zip(task.class_names, weights, strict=True))})

    def _reject_booleans_of_yaml(self) -> None:
        """Raise DataError if listed classes are true and false, and the labels are words that YAML may read so."""
        labels = [label for kind, label in self._origins if kind is str]
        words = sorted({label for label in labels if label.lower() in _YAML_BOOLEANS})
        listed = self._task.classes or []
        if bool in map(type, listed) and words and not any(kind is bool for kind, _ in self._origins):
            raise DataError(
                f"column `{self._task.column}`: the labels are {' and '.join(map(repr, words))}, and `classes` has "
                f"{' and '.join(str(known).lower() for known in listed if isinstance(known, bool))}: YAML reads true and false "
                f"as booleans, and older YAML also yes, no, on and off; put the classes in quotes, such as {words[0]!r}"
            )

    def _collect_classes(self) -> list[Any]:
        """Return all classes, sorted. Raises DataError if they are fewer than two, or of ambiguous types."""
        column = self._task.column
        frequent = [pair for pair in self._origins if self._counts[pair] >= self._task.min_class_rows]
        found = [label for _, label in sorted(frequent, key=lambda pair: (str(pair[0]), pair[1]))]
        alike = _find_numbers_as_texts(found) or _find_equal_booleans(found) or find_ambiguous_labels(found)
        if alike:
            places = [f"{label!r} ({self._origins[type(label), label]})" for label in alike]
            raise DataError(
                f"column `{column}`: holds {' and '.join(places)}, one class in two forms; "
                "write one of them everywhere"
            )
        _reject_mixed_types(column, self._types)
        if len(found) < 2:
            number = f"one class ({format_value(found[0])})" if found else "no class"
            raise (InsufficientRowsError if found or not self._types else DataError)(
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


def _find_numbers_as_texts(classes: Sequence[Any]) -> list[Any]:
    """Return the first whole number and a text that is the same number, such as 2 and "2.0"; [] if there are none."""
    numbers = {label for label in classes if type(label) is int}
    texts = [label for label in classes if isinstance(label, str) and label_of_text(label) in numbers]
    return [label_of_text(texts[0]), texts[0]] if texts else []


def _find_equal_booleans(classes: Sequence[Any]) -> list[Any]:
    """Return the first two texts that are one boolean, such as "true" and "True"; [] if there are none."""
    seen: dict[str, str] = {}
    for known in classes:
        word = known.lower() if isinstance(known, str) else ""
        if word in seen:
            return [seen[word], known]
        if word in ("true", "false"):
            seen[word] = known
    return []


def find_ambiguous_labels(classes: Sequence[Any]) -> list[Any]:
    """Return the first two classes with the same text, which is how predictions name classes; [] if there are none."""
    seen: dict[str, Any] = {}
    for known in classes:
        name = str(normalize_label(known))
        if name in seen:
            return [seen[name], known]
        seen[name] = known
    return []


class BaseClassesTaskConfig(ColumnTaskConfig, ClassLossConfig):
    """Options of a task over classes."""

    classes: list[str | int | bool] | None = Field(None, min_length=2)
    """All classes, in order; by default those of the training rows, sorted."""
    top_k: int | None = Field(None, ge=1)
    """Number of classes in the `scores` of a prediction, the most probable ones; by default all of up to 100 classes, and 20
    of more."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "int"}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in predictions."""
        return [str(known) for known in self.classes or ()]

    @property
    def num_scores(self) -> int:
        """Number of classes in the `scores` of a prediction."""
        count = len(self.classes or ())
        return min(count, self.top_k or (count if count <= MAX_LISTED_CLASSES else _TOP_SCORES))

    @property
    def min_class_rows(self) -> int:
        """Number of training rows below which a label is not used as a class."""
        return 1

    def labels(self, value: Any) -> Iterable[Any]:
        """Return the labels in a value of the column."""
        return (value,)

    def is_class(self, value: Any) -> bool:
        """Return whether a label is one of the classes, or no label at all, which `class_index` rejects."""
        label = normalize_label(value)
        return not _is_valid_label(label) or (type(label), label) in self._index

    def class_index(self, value: Any) -> int:
        """Return the index of a label's class. Raises InvalidInputError if it is missing or not a class."""
        label = normalize_label(value)
        try:
            return self._index[type(label), label]
        except (KeyError, TypeError):
            if is_missing(value):
                raise InvalidInputError(_MISSING_LABEL) from None
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
        if self.classes is None or self.class_weights == "balanced" or bool in map(type, self.classes):
            return ClassesFitter(self)
        check_class_weights(self.class_weights, self.class_names)
        return None

    def validate_found_classes(self, classes: Sequence[Any]) -> None:
        """Raise DataError if classes found in the training rows must be listed by the user instead."""

    def balanced_weights(self, counts: Counter[int], rows: int) -> list[float]:
        """Return the weight of each class, from the number of labels of each and the number of rows."""
        return balanced_class_weights([counts[i] for i in range(len(self.classes or ()))])

    def _iter_class_indices(self, row: TaskRow) -> Iterator[int]:
        for label in self.labels(row.values.get(self.column)):
            try:
                yield self.class_index(label)
            except InvalidInputError:  # reported when all rows are validated
                continue

    def summary(self, name: str) -> Summary:
        return CountSummary(self._iter_class_indices, partial(self._describe_counts, name))

    def _describe_counts(self, name: str, counts: Counter[int]) -> Iterator[str]:
        classes = self.classes or []
        if counts:
            by_name = Counter({format_value(classes[index]): count for index, count in counts.items()})
            yield f"{name}: {len(counts)} classes in train; {_imbalance(by_name)}"
        absent = [known for index, known in enumerate(classes) if index not in counts]
        if absent:
            number = f"{len(absent)} of the {len(classes)} classes: " if len(absent) > 1 else "class "
            yield f"WARNING {name}: no valid train row has {number}{format_classes(absent)}"

    @cached_property
    def _index(self) -> dict[tuple[Any, Any], int]:
        labels = map(normalize_label, self.classes or ())
        return {(type(label), label): index for index, label in enumerate(labels)}

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

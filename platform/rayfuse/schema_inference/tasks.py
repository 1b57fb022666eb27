"""Kinds of tasks, inferred from the values of a target."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayfuse.errors import SpecError
from rayfuse.schema_inference.column import canonical, names_id, normalized_name, show_values
from rayfuse.schema_inference.lists import are_tags
from rayfuse.schema_inference.numbers import is_number, parse_numbers
from rayfuse.schema_inference.relations import find_text_of_ids
from rayfuse.schema_inference.sample import Embedded, Sample
from rayfuse.schema_inference.scales import order_words
from rayfuse.spec.error_messages import suggest_nearest

_MAX_INTEGER_CLASSES = 20
"""Distinct whole numbers above which they are numbers instead of classes."""
_MAX_SPARSE_CLASSES = 3
_MAX_RARE_CLASSES = 10
"""Distinct whole numbers up to which some may be rare."""
_ORDINAL_LEVELS = range(3, 12)
_NEARLY_UNIQUE = 0.9
_MOSTLY_UNKNOWN = 0.5
_MIN_ROWS_OF_UNIQUE = 20
_WORDS_OF_TEXT = 3
_RARE = 3
_SEPARATORS = (";", "|", ",")
_MAX_LABEL_WORDS = 3
_ORDINAL_NAME = re.compile(
    r"(^|_)(ratings?|stars?|grade|level|severity|quality|stage|rank|satisfaction|likert|priority|risk)($|_)"
)
_CLASS_NAME = re.compile(r"(^|_)(label|class|category|type|digit|intent|cluster|species|group|topic)(_id)?$")
_RELEVANCE_NAME = re.compile(r"(^|_)(relevance|rel|clicked|click)$")
_QUERY_NAME = re.compile(r"^(query|qid|query_id|search|search_id|question_id)$")


@dataclass(frozen=True)
class Task:
    """A task that a target column suggests."""

    column: str
    """The target."""
    type: str
    """Kind of the task."""
    note: str
    """Reason of the kind."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options other than `type` and `column`."""
    missing: float = 0.0
    """Share of rows without a target."""
    unknown: float = 0.0
    """Share of rows, of validation or test, with a label that may be in no training row."""
    words_column: str | None = None
    """Column of words that a tagging task tags."""
    is_pair: bool = False
    """True if the task compares two inputs, so that the target may be one of them."""
    by_class: bool = False
    """True if each row has one class, by which rows can be held out."""


def infer_task(
    column: str, sample: Sample, override: str | None = None, others: Sequence[Sequence[Any]] = ()
) -> Task:
    """Return the task of a target; `others`: its values in validation and test files.

    Raises SpecError if it has no values, a single one, or none that a task predicts.
    """
    values = sample.columns[column]
    present = [value for value in values if value is not None and value != ""]
    missing = 1 - len(present) / len(values)
    if not present:
        raise SpecError(
            f"target `{column}`: none of the {len(values)} sampled rows has a value; use another column"
        )
    distinct = len({canonical(value) for value in present})
    if distinct == 1:
        raise SpecError(
            f"target `{column}`: all {len(present)} sampled rows have the same value, {show_values(present)}; "
            "there is nothing to predict, so use another column"
        )
    if override is not None:
        task = _of_type(override, column, present, sample)
    else:
        task = _infer(column, present, sample)
    if override is None and task.type == "classification" and _are_new_texts(present, others):
        task = _retrieval(column, "texts, which are others in validation and test")
    unknown = _share_unknown(task, values, others)
    if override is None and task.type == "classification" and unknown > _MOSTLY_UNKNOWN:
        raise _unknown_classes_error(column, unknown, sample)
    if unknown and task.type == "multi_label":
        task, unknown = _without_rare_labels(task), 0.0
    note = f"{task.note}; {missing:.1%} of the rows lack it and are left out" if missing else task.note
    return dataclasses.replace(task, missing=missing, note=note, unknown=unknown)


def _unknown_classes_error(column: str, unknown: float, sample: Sample) -> SpecError:
    text = find_text_of_ids(column, sample)
    remedy = f"use --target {text}, whose texts are found by another input" if text else "use another column"
    return SpecError(
        f"target `{column}`: {unknown:.0%} of the validation or test rows have a class that no sampled training row has, and "
        f"a classification predicts classes of training rows only; {remedy}, or --task {column}=classification"
    )


def _infer(column: str, values: Sequence[Any], sample: Sample) -> Task:
    if all(isinstance(value, bool) for value in values):
        return _classes(column, values, "classification")
    if all(isinstance(value, list) for value in values):
        return _infer_lists(column, values, sample)
    numbers = _as_numbers(values)
    if numbers is not None:
        return _infer_numbers(column, values, numbers, sample)
    if all(isinstance(value, (str, int, float, bool)) for value in values):
        return _infer_words(column, list(map(str, values)), sample)
    kind = "files" if isinstance(values[0], Embedded) else f"values of type {type(values[0]).__name__}"
    raise SpecError(
        f"target `{column}`: it holds {kind}; a target is a label, a number, a list of labels, or tags of words"
    )


def _as_numbers(values: Sequence[Any]) -> list[float] | None:
    if all(map(is_number, values)):
        return [float(value) for value in values]
    return parse_numbers(values) if all(isinstance(value, str) for value in values) else None


def _infer_numbers(column: str, values: Sequence[Any], numbers: Sequence[float], sample: Sample) -> Task:
    distinct = sorted(set(numbers))
    whole = all(number.is_integer() for number in distinct)
    name = normalized_name(column)
    shown = f"{distinct[0]:.6g} to {distinct[-1]:.6g}"
    if _RELEVANCE_NAME.search(name) and distinct[0] >= 0 and _find_query(sample):
        return _ranking(column, sample)
    if whole and _is_scale(name, distinct):
        return _ordinal(column, values, sample, f"whole numbers {shown}, which have an order")
    if whole and (_are_codes(Counter(numbers)) or _CLASS_NAME.search(name)):
        return _classes(column, values, "classification", f"{len(distinct)} whole numbers, {shown}")
    if whole and (reason := _find_ids(column, values, len(distinct), sample)):
        return _classes(column, values, "classification", f"{len(distinct)} ids, {shown}, {reason}")
    what = "whole numbers" if whole else "numbers"
    return Task(column, "regression", f"{len(distinct):,} different {what}, {shown}")


def _find_ids(column: str, values: Sequence[Any], distinct: int, sample: Sample) -> str | None:
    """Return why whole numbers are ids rather than amounts; None if they are not. Raises SpecError if they identify rows."""
    if text := find_text_of_ids(column, sample):
        return f"each of one value of `{text}`"
    if not names_id(column):
        return None
    if distinct >= _NEARLY_UNIQUE * len(values) and len(values) >= _MIN_ROWS_OF_UNIQUE:
        raise SpecError(
            f"target `{column}`: nearly every row has its own id ({show_values(values)}), by its name; use another column, or "
            f"--task {column}=regression if it is an amount"
        )
    return "by the name"


def _are_codes(counts: Mapping[float, int]) -> bool:
    """Return whether whole numbers are few, without gaps, and each frequent, as those of classes are."""
    count = len(counts)
    dense = max(counts) - min(counts) < 2 * count or count <= _MAX_SPARSE_CLASSES
    frequent = count <= _MAX_RARE_CLASSES or min(counts.values()) >= _RARE
    return count <= _MAX_INTEGER_CLASSES and dense and frequent


def _is_scale(name: str, levels: Sequence[float]) -> bool:
    """Return whether whole numbers are an ordered scale, such as stars from 1 to 5."""
    if len(levels) not in _ORDINAL_LEVELS or _CLASS_NAME.search(name):
        return False
    dense = levels[-1] - levels[0] < _ORDINAL_LEVELS.stop
    return dense and (levels[0] == 1 or _ORDINAL_NAME.search(name) is not None)


def _infer_words(column: str, texts: Sequence[str], sample: Sample) -> Task:
    words = [text.strip() for text in texts]
    distinct = Counter(words)
    if ordered := order_words(distinct):
        return _ordinal(column, texts, sample, f"words with an order: {', '.join(ordered)}")
    mean = sum(len(text.split()) for text in words) / len(words)
    unique = len(distinct) >= _NEARLY_UNIQUE * len(words) and len(words) >= _MIN_ROWS_OF_UNIQUE
    if separator := _find_separator(words):
        parts = {part.strip() for text in words for part in text.split(separator) if part.strip()}
        note = f"labels separated by `{separator}`, {len(parts):,} different"
        return Task(column, "multi_label", note, {"separator": separator})
    if mean >= _WORDS_OF_TEXT and len(distinct) > len(words) / 2:
        return _retrieval(column, f"texts of {mean:.0f} words on average, most of them different")
    if unique:
        raise SpecError(
            f"target `{column}`: nearly every row has its own value ({show_values(words)}), so it is an id rather than a "
            f"class; use another column, --task {column}=retrieval if another input finds it, or --task {column}=classification"
        )
    return _classes(column, words, "classification")


def _retrieval(column: str, what: str) -> Task:
    return Task(column, "retrieval", f"{what}: each is found by the input that belongs to it", is_pair=True)


def _are_new_texts(values: Sequence[Any], others: Sequence[Sequence[Any]]) -> bool:
    """Return whether most labels of other splits are texts of several words that no training row has."""
    known = set(map(canonical, values))
    new = [
        other for split in others for other in split if other is not None and canonical(other) not in known
    ]
    total = sum(len(split) for split in others)
    words = sum(len(str(value).split()) for value in values) / len(values)
    return 2 * len(new) > total > 0 and words >= _WORDS_OF_TEXT


def _share_unknown(task: Task, values: Sequence[Any], others: Sequence[Sequence[Any]]) -> float:
    """Return the largest share of rows of a split with a label that may be in no training row."""
    if task.type not in ("classification", "ordinal", "multi_label"):
        return 0.0
    separator = task.options.get("separator")
    rows = [_labels(value, separator) for value in values]
    counts = Counter(label for row in rows for label in set(row))
    rare = sum(any(counts[label] < _RARE for label in row) for row in rows) / len(rows)
    shares = [
        sum(any(label not in counts for label in _labels(value, separator)) for value in split) / len(split)
        for split in others
        if split
    ]
    return max([rare if task.type == "multi_label" else 0.0, *shares])


def _without_rare_labels(task: Task) -> Task:
    note = f"{task.note}; labels in fewer than {_RARE} rows are ignored"
    return dataclasses.replace(task, note=note, options={**task.options, "min_frequency": _RARE})


def _labels(value: Any, separator: str | None) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str) and separator:
        return [part.strip() for part in value.split(separator) if part.strip()]
    return [canonical(label) for label in (value if isinstance(value, list) else [value])]


def _find_separator(texts: Sequence[str]) -> str | None:
    """Return the separator of labels in texts: many have it, and parts occur far more often than texts."""
    distinct = len(set(texts))
    for separator in _SEPARATORS:
        split = [[part.strip() for part in text.split(separator)] for text in texts]
        labels = {label for parts in split for label in parts if label}
        several = sum(len(parts) > 1 for parts in split)
        short = all(len(label.split()) <= _MAX_LABEL_WORDS for label in labels)
        if several > len(texts) / 4 and short and 2 * len(labels) <= distinct:
            return separator
    return None


def _infer_lists(column: str, values: Sequence[list[Any]], sample: Sample) -> Task:
    items = [item for value in values for item in value]
    if are_tags(values) and (words := _parallel_words(column, sample)):
        return _tagging(column, words)
    if not all(isinstance(item, (str, bool, int)) for item in items):
        raise SpecError(
            f"target `{column}`: lists of {type(items[0]).__name__} are no target; a list holds labels, or tags of words"
        )
    labels = set(map(canonical, items))
    return Task(column, "multi_label", f"lists of labels, {len(labels):,} different: {show_values(items)}")


def _parallel_words(column: str, sample: Sample) -> str | None:
    """Return the column of lists of texts that have as many words as the target has tags."""
    tags = sample.columns[column]
    for name, values in sample.columns.items():
        pairs = [(words, tag) for words, tag in zip(values, tags, strict=True) if words and tag]
        fits = bool(pairs) and all(_are_parallel(words, tag) for words, tag in pairs)
        if name != column and fits and not are_tags([words for words, _ in pairs]):
            return name
    return None


def _are_parallel(words: Any, tags: Any) -> bool:
    return (
        isinstance(words, list) and len(words) == len(tags) and all(isinstance(word, str) for word in words)
    )


def _classes(column: str, values: Sequence[Any], kind: str, what: str | None = None) -> Task:
    counts = Counter(map(canonical, values))
    rare = sum(count < _RARE for count in counts.values())
    share = counts.most_common(1)[0][1] / len(values)
    note = what or f"{len(counts):,} classes: {show_values(values)}"
    note += f"; {share:.0%} have the most frequent one"
    if rare:
        note += f"; {rare:,} occur in fewer than {_RARE} rows"
    return Task(column, kind, note, by_class=True)


def _ordinal(column: str, values: Sequence[Any], sample: Sample, note: str) -> Task:
    """Return an ordinal task; the order of texts is listed, that of whole numbers is known."""
    texts = {value.strip() for value in values if isinstance(value, str)}
    if not texts or (sample.is_untyped and parse_numbers(list(texts)) is not None):
        return Task(column, "ordinal", note, by_class=True)
    numeric = parse_numbers(sorted(texts)) is not None
    ordered = sorted(texts, key=float) if numeric else order_words(texts)
    if ordered is None:
        ordered, note = sorted(texts), f"{note}; WARNING: check the order of the classes"
    return Task(column, "ordinal", note, {"classes": ordered}, by_class=True)


def _tagging(column: str, words: str) -> Task:
    return Task(column, "tagging", f"a tag for each word of `{words}`", words_column=words)


def _find_query(sample: Sample) -> str | None:
    for name, values in sample.columns.items():
        if _QUERY_NAME.search(normalized_name(name)) and len(set(map(canonical, values))) <= len(values) / 2:
            return name
    return None


def _ranking(column: str, sample: Sample) -> Task:
    query = _find_query(sample)
    if query is None:
        raise SpecError(
            f"task {column}=ranking: no column names queries that have several rows, such as `query_id`; write the job by hand"
        )
    return Task(column, "ranking", f"relevance for the query in `{query}`", {"query_column": query})


def _of_type(kind: str, column: str, values: Sequence[Any], sample: Sample) -> Task:
    if kind in ("generation", "preference"):
        raise SpecError(
            f"task {column}={kind}: a language model and its prompt cannot be chosen by the data; write the job by hand"
        )
    if kind not in _BUILDERS:
        raise SpecError(f"task {column}={kind}: not a kind of task; {suggest_nearest(kind, list(_BUILDERS))}")
    return _BUILDERS[kind](column, values, sample)


def _forced_tagging(column: str, values: Sequence[Any], sample: Sample) -> Task:
    words = _parallel_words(column, sample)
    if words is None:
        raise SpecError(f"task {column}=tagging: no column has a list with a word for each tag; add one")
    return _tagging(column, words)


def _forced_labels(column: str, values: Sequence[Any], sample: Sample) -> Task:
    texts = [value for value in values if isinstance(value, str)]
    options = {"separator": _find_separator(texts) or ","} if texts else {}
    return Task(column, "multi_label", "as given by --task", options)


def _forced_regression(column: str, values: Sequence[Any], sample: Sample) -> Task:
    if _as_numbers(values) is None:
        odd = next(value for value in values if _as_numbers([value]) is None)
        raise SpecError(
            f"task {column}=regression: {odd!r} is not a number; correct the column, or use another task"
        )
    return Task(column, "regression", "as given by --task")


_BUILDERS: dict[str, Callable[[str, Sequence[Any], Sample], Task]] = {
    "classification": lambda column, values, sample: _classes(column, values, "classification"),
    "multi_label": _forced_labels,
    "ordinal": lambda column, values, sample: _ordinal(column, values, sample, "as given by --task"),
    "regression": _forced_regression,
    "tagging": _forced_tagging,
    "ranking": lambda column, values, sample: _ranking(column, sample),
    "matching": lambda column, values, sample: Task(
        column, "matching", "true for inputs that belong together", is_pair=True
    ),
    "retrieval": lambda column, values, sample: Task(column, "retrieval", "as given by --task", is_pair=True),
}

"""Tagging: a tag for every word of a text."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayfuse.errors import InsufficientRowsError, InvalidInputError
from rayfuse.formatting import plural
from rayfuse.spec.align import ALIGNMENTS
from rayfuse.spec.base import Key, Problems, is_missing
from rayfuse.spec.cells import CellType
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import (
    ColumnTaskConfig,
    Mode,
    TaskFitter,
    TaskRow,
    format_value,
    validate_inputs,
)
from rayfuse.spec.tasks.classes import (
    ClassLossConfig,
    balanced_class_weights,
    check_class_weights,
    format_classes,
)

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput
    from rayfuse.spec.job import Job

_MAX_TYPES_SHOWN = 20

TAGGING_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
}


class TaggingTaskConfig(ColumnTaskConfig, ClassLossConfig):
    """Entities in a text: a tag per word, O, B-TYPE or I-TYPE (IOB2; Tjong Kim Sang and Veenstra, 1999)."""

    type: Literal["tagging"]
    input: Key
    """The input with the words: a text input whose rows are lists of words."""
    entities: list[str] | None = Field(None, min_length=1)
    """Types of entities; by default those of the training rows, sorted."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "str"}

    @property
    def tags(self) -> list[str]:
        """All tags, in the order of the outputs: O, then B- and I- of each type."""
        return ["O", *(f"{mark}-{kind}" for kind in self.entities or () for mark in "BI")]

    def metric_modes(self) -> dict[str, Mode]:
        return TAGGING_METRICS

    def validate_in_job(self, job: "Job") -> Problems:
        yield from validate_inputs(job, "input", [self.input])
        source = job.inputs.get(self.input)
        if source is None:
            return
        if not source.has_words or source.max_items > 1:
            yield "input", f"`{self.input}` is not a single text; use a text input with max_items 1"
        elif not source.encoder.outputs_tokens:
            yield (
                "input",
                f"the encoder of `{self.input}` pools the text to one vector, and tagging needs one per word; "
                f"set `pool: none` under inputs.{self.input}.encoder, which all types but `conv` and `ngrams` have",
            )
        align = job.align_of(self.input)
        if not align.preserves_positions:
            known = [name for name, config in ALIGNMENTS.items() if config.preserves_positions]
            yield (
                "input",
                f"align.type {align.type} does not preserve the positions of words; use one of: {', '.join(known)}",
            )

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> list[float]:
        """Return the index of each word's tag.

        Raises InvalidInputError if one is not a tag, or if there are not as many as words.
        """
        words = inputs[self.input].read(values)
        target = self.target(values.get(self.column))
        if is_missing(words):
            return target  # a missing input is rejected elsewhere unless it is optional
        if not isinstance(words, (list, tuple)):
            raise InvalidInputError(f"`{self.input}` is not a list of words; write one word per tag")
        if len(words) != len(target):
            raise InvalidInputError(
                f"{plural(len(target), 'tag')} for the {plural(len(words), 'word')} of `{self.input}`; write one tag per word"
            )
        return target

    def target(self, value: Any) -> list[float]:
        """Return the index of each word's tag. Raises InvalidInputError if one is not a tag."""
        if is_missing(value):
            raise InvalidInputError("the tags are missing")
        if not isinstance(value, (list, tuple)) or not value:
            raise InvalidInputError(f"{format_value(value)} is not a list of tags; write one tag per word")
        index = self._index
        for tag in value:
            if not isinstance(tag, str) or tag not in index:
                raise InvalidInputError(
                    f"tag {format_value(tag)} is not one of: {format_classes(self.tags)}; write O, B-TYPE or I-TYPE, "
                    "or add its type to `entities`"
                )
        return [index[tag] for tag in value]

    @cached_property
    def _index(self) -> dict[str, float]:
        return {tag: float(i) for i, tag in enumerate(self.tags)}

    def fitter(self) -> TaskFitter | None:
        if self.entities is None or self.class_weights == "balanced":
            return _TagFitter(self)
        check_class_weights(self.class_weights, self.tags)
        return None

    def summary(self, name: str) -> Summary:
        return CountSummary(lambda row: _iter_tags(row, self.column), partial(self._describe_counts, name))

    def _describe_counts(self, name: str, counts: Counter[str]) -> list[str]:
        types = sorted(self.entities or (), key=lambda kind: -counts[f"B-{kind}"])
        entities = ", ".join(f"{kind} {counts[f'B-{kind}']}" for kind in types[:_MAX_TYPES_SHOWN])
        entities += (
            f" and {len(types) - _MAX_TYPES_SHOWN} more types" if len(types) > _MAX_TYPES_SHOWN else ""
        )
        return [f"{name}: {counts.total()} words in train; entities: {entities}"]


class _TagFitter(TaskFitter):
    """Entity types: those listed, or all that occur, sorted; and balanced weights of the tags."""

    def __init__(self, task: TaggingTaskConfig) -> None:
        self._task = task
        self._counts: Counter[str] = Counter()

    def partial_fit(self, row: TaskRow) -> None:
        self._counts.update(_iter_tags(row, self._task.column))

    def finalize(self) -> TaggingTaskConfig:
        task = self._task
        if task.entities is None:
            found = sorted({tag[2:] for tag in self._counts if _is_entity_tag(tag)})
            if not found:
                raise InsufficientRowsError(
                    f"column `{task.column}`: no tag in the training rows is B-TYPE or I-TYPE; tag the first word of an "
                    "entity B-TYPE, its others I-TYPE and all other words O"
                )
            task = task.model_copy(update={"entities": found})
        check_class_weights(task.class_weights, task.tags, InsufficientRowsError)
        if task.class_weights != "balanced":
            return task
        weights = balanced_class_weights([self._counts[tag] for tag in task.tags])
        return task.model_copy(update={"class_weights": dict(zip(task.tags, weights, strict=True))})


def _iter_tags(row: TaskRow, column: str) -> Iterator[str]:
    """Yield the tags of a row that are texts."""
    tags = row.values.get(column)
    yield from (tag for tag in tags if isinstance(tag, str)) if isinstance(tags, (list, tuple)) else ()


def _is_entity_tag(tag: str) -> bool:
    return tag[:2] in ("B-", "I-") and len(tag) > 2

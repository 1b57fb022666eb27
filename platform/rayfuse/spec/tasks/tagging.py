"""A tag for every word of a text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.base import Key
from rayfuse.spec.custom import Custom
from rayfuse.spec.tasks.base import Cell, ColumnTask, Mode, TaskRow, input_problems, is_absent, shown
from rayfuse.spec.tasks.classes import ClassLoss, balanced, listed, refuse_unknown_weights

TAGGING_METRICS: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
}
_KEEP_POSITIONS = ("linear", "mlp", "identity")
"""Alignments whose tokens are those of the encoder."""


class TaggingTask(ColumnTask, ClassLoss):
    """Entities in a text of words: a tag per word, O, B-TYPE or I-TYPE (IOB2; Tjong Kim Sang and Veenstra, 1999)."""

    type: Literal["tagging"]
    input: Key
    """The input that holds the words: a text input whose rows are lists of words."""
    entities: list[str] | None = Field(None, min_length=1)
    """The types of entities; found in the training rows (sorted) where absent."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "text"}

    @property
    def tags(self) -> list[str]:
        """All tags, in the order of the outputs: O, then B- and I- of each type."""
        return ["O", *(f"{mark}-{kind}" for kind in self.entities or () for mark in "BI")]

    def metrics(self) -> dict[str, Mode]:
        return TAGGING_METRICS

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from input_problems(job, "input", [self.input])
        source = job.inputs.get(self.input)
        if source is None:
            return
        if source.type != "text" or source.max_items > 1:
            yield "input", f"`{self.input}` is not one text, and tags belong to the words of one"
        elif not isinstance(source.encoder, Custom) and getattr(source.encoder, "pool", None) != "none":
            yield (
                "input",
                f"the encoder of `{self.input}` makes one vector of the whole text, and tags need one for each "
                f"word; write `pool: none` under inputs.{self.input}.encoder (type huggingface)",
            )
        align = job.align_of(self.input)
        if align.type not in _KEEP_POSITIONS:
            yield (
                "input",
                f"align.type {align.type} does not keep the places of words; use one of: {', '.join(_KEEP_POSITIONS)}",
            )

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[float]:
        """The index of each word's tag. Raises BadInput where the tags are no tags, or not as many as the words."""
        words = values.get(inputs[self.input].column)
        target = self.target(values.get(self.column))
        if is_absent(words):
            return target  # the input is left out; where it may not be, the row is refused for that
        if not isinstance(words, (list, tuple)):
            raise BadInput(f"`{self.input}` is no list of words, and each tag belongs to one")
        if len(words) != len(target):
            raise BadInput(f"{len(target)} tags for the {len(words)} words of `{self.input}`; one for each")
        return target

    def target(self, value: Any) -> list[float]:
        """The index of each word's tag. Raises BadInput where one is no tag."""
        if is_absent(value):
            raise BadInput("the tags are missing")
        if not isinstance(value, (list, tuple)) or not value:
            raise BadInput(f"{shown(value)} is no list of tags; write one for each word")
        index = {tag: float(i) for i, tag in enumerate(self.tags)}
        for tag in value:
            if not isinstance(tag, str) or tag not in index:
                raise BadInput(
                    f"tag {shown(tag)} is not one of: {listed(self.tags)}; write O, B-TYPE or I-TYPE, "
                    "or list the type under `entities`"
                )
        return [index[tag] for tag in value]

    def fitted(self, rows: Sequence[TaskRow]) -> Self:
        """This task with its types of entities known: those listed, else all that occur, sorted."""
        task = self
        if task.entities is None:
            found = sorted({tag[2:] for tag in self._all(rows) if _names_entity(tag)})
            if not found:
                raise DataError(
                    f"column `{self.column}`: no tag but O in the training rows; an entity's words have the tags "
                    "B-TYPE and I-TYPE"
                )
            task = self.model_copy(update={"entities": found})
        refuse_unknown_weights(task.class_weights, task.tags)
        if task.class_weights != "balanced":
            return task
        counts = Counter(tag for tag in task._all(rows) if isinstance(tag, str))
        weights = balanced([counts[tag] for tag in task.tags])
        return task.model_copy(update={"class_weights": dict(zip(task.tags, weights, strict=True))})

    def _all(self, rows: Sequence[TaskRow]) -> Iterator[Any]:
        for row in rows:
            tags = row.values.get(self.column)
            yield from tags if isinstance(tags, (list, tuple)) else ()

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        counts = Counter(tag for tag in self._all(rows) if isinstance(tag, str))
        begun = ", ".join(f"{kind} {counts[f'B-{kind}']}" for kind in self.entities or ())
        yield f"{name}: {sum(counts.values())} words in train; entities: {begun}"


def _names_entity(tag: Any) -> bool:
    return isinstance(tag, str) and tag[:2] in ("B-", "I-") and len(tag) > 2

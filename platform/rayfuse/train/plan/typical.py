"""A batch as a job will see it, without its files: blank values of a given length."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rayfuse.data.batches import Batch
from rayfuse.data.rows import Row, is_missing
from rayfuse.data.samples import Sample, row_value
from rayfuse.data.training import training_batch
from rayfuse.errors import BadInput, SpecError
from rayfuse.modalities import Features, Modality, build_modality
from rayfuse.modalities.sequence import History
from rayfuse.modalities.video import Clip
from rayfuse.spec.cache import cached_inputs
from rayfuse.spec.inputs import CategoryColumn, Input, NumberColumn, TableInput
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Target

LENGTHS = {
    "text": "max_tokens",
    "audio": "max_seconds",
    "video": "frames",
    "series": "max_steps",
    "sequence": "length",
}
"""The field that bounds how long a value of each kind of input is."""

_IN_ROWS = {"text": "attention_mask", "series": "step_mask", "sequence": "item_mask"}
"""A feature with an entry for each step, of the inputs whose values stand in the rows themselves."""
_ROWS_LOOKED_AT = 256

_CLASSES = [str(number) for number in range(10)]
_ENTITIES = ["A", "B", "C", "D"]
_CATEGORIES = [str(number) for number in range(100)]
_ITEMS = [str(number) for number in range(10_000)]


def with_lengths(job: Job, lengths: Mapping[str, float]) -> Job:
    """The job with inputs of these lengths: tokens, seconds, frames, steps or items.

    Raises SpecError for what is no input, an input without a length, and a length above the job's own.
    """
    inputs = dict(job.inputs)
    for name, length in lengths.items():
        if name not in inputs:
            raise SpecError(f"--length {name}={length:g}: no input is called so; one of: {', '.join(inputs)}")
        field = LENGTHS.get(inputs[name].type)
        if field is None:
            raise SpecError(f"--length {name}={length:g}: inputs of type {inputs[name].type} have no length")
        most = getattr(inputs[name], field)
        if not 0 < length <= most:
            raise SpecError(
                f"--length {name}={length:g}: the job's inputs.{name}.{field} allows more than 0 and up to {most:g}; "
                f"raise it with --set inputs.{name}.{field}=…"
            )
        inputs[name] = inputs[name].model_copy(update={field: type(most)(length)})
    return job.model_copy(update={"inputs": inputs})


def longest(job: Job, rows: Iterable[Row]) -> dict[str, int]:
    """The longest value of each text, series and sequence among the first rows."""
    first = [row for row, _ in zip(rows, range(_ROWS_LOOKED_AT), strict=False)]
    found = {}
    for name, options in job.inputs.items():
        if options.type in _IN_ROWS:
            modality = build_modality(options)
            lengths = [_length(name, options, modality, row) for row in first]
            found[name] = max([1, *lengths])
    return found


def _length(name: str, options: Input, modality: Modality, row: Row) -> int:
    try:
        value = row_value(name, options, row)
        items = value if options.max_items > 1 and isinstance(value, (list, tuple)) else [value]
        return max(
            (
                modality.process(modality.decode(item))[_IN_ROWS[options.type]].shape[-1]
                for item in items
                if not is_missing(item)
            ),
            default=0,
        )
    except BadInput:  # checked, counted and told of when the job runs
        return 0


def assumed(job: Job) -> tuple[Job, list[str]]:
    """The job with what it would learn from its rows made up, and what was made up."""
    inputs, tasks, told = dict(job.inputs), dict(job.tasks), []
    for name, options in inputs.items():
        if options.type == "series":
            inputs[name] = options.model_copy(
                update={"center": [0.0] * options.count, "scale": [1.0] * options.count}
            )
        elif options.type == "sequence" and options.vocabulary is None:
            inputs[name] = options.model_copy(update={"vocabulary": _ITEMS})
            told.append(f"{name}: {len(_ITEMS)} items")
        elif isinstance(options, TableInput):
            inputs[name] = options.model_copy(
                update={"columns": {key: _column(column) for key, column in options.columns.items()}}
            )
            told.append(
                f"{name}: columns are numbers unless they are said to be categories, of {len(_CATEGORIES)} values"
            )
    for name, task in tasks.items():
        update = {field: value for field, value in _LEARNED.items() if getattr(task, field, value) is None}
        if getattr(task, "class_weights", None) == "balanced":
            update["class_weights"] = {}
        tasks[name] = task.model_copy(update=update)
        told += [
            f"{name}: {len(value)} {field}" for field, value in update.items() if isinstance(value, list)
        ]
    return job.model_copy(update={"inputs": inputs, "tasks": tasks}), told


_LEARNED: dict[str, Any] = {"classes": _CLASSES, "entities": _ENTITIES, "mean": 0.0, "deviation": 1.0}
"""Fields of tasks that training rows fill in."""


def _column(column: Any) -> Any:
    if isinstance(column, CategoryColumn):
        return column if column.vocabulary else CategoryColumn(vocabulary=_CATEGORIES)
    return NumberColumn(center=0.0, scale=1.0)


def typical_batch(job: Job, rows: int) -> Batch:
    """A training batch of a fitted job: `rows` rows that have all inputs, each as long as the job allows.

    Views of rows come as in training. All values differ, so none is encoded for another.
    """
    undisturbed = job.model_copy(update={"train": job.train.model_copy(update={"input_dropout": 0.0})})
    return training_batch(range(rows), _Typical(undisturbed), undisturbed, epoch=0)  # type: ignore[arg-type]


class _Typical:
    """Stands in for the store of a job's samples."""

    def __init__(self, job: Job) -> None:
        self.modalities = {name: build_modality(options) for name, options in job.inputs.items()}
        self.maker = self
        words = max((task.type == "tagging" for task in job.tasks.values()), default=False)
        self._features = {
            name: _longest_value(options, self.modalities[name], words)
            for name, options in job.inputs.items()
        }
        self._items = {name: options.max_items for name, options in job.inputs.items()}
        self._targets = {name: _target(task, job) for name, task in job.tasks.items()}

    def __getitem__(self, number: int) -> Sample:
        features = {name: [value] * self._items[name] for name, value in self._features.items()}
        keys = {
            name: [f"{number} {item}".encode() for item in range(count)]
            for name, count in self._items.items()
        }
        return Sample(features, keys, self._targets)

    def __len__(self) -> int:
        return 1


def sample_bytes(job: Job) -> int:
    """Bytes of the features of one row that a worker reads, which leaves out inputs whose encoders ran before."""
    sample = _Typical(job)[0]
    for name in cached_inputs(job):
        del sample.features[name]
    return sample.size


def _longest_value(options: Input, modality: Modality, words: bool) -> Features:
    decode = _DECODED.get(options.type)
    if decode is None:
        return modality.blank()
    features = modality.process(decode(options, words and options.type == "text"))
    if options.type == "text":  # a tokenizer adds marks of its own, and cuts
        features = {name: values[: options.max_tokens] for name, values in features.items()}
    return features


def _text(options: Any, words: bool) -> str | list[str]:
    return ["a"] * options.max_tokens if words else "a " * options.max_tokens


_DECODED: dict[str, Callable[[Any, bool], Any]] = {
    "text": _text,
    "series": lambda options, _: np.zeros((options.count, options.max_steps)),
    "sequence": lambda options, _: History(["0"] * options.length, None),
    "video": lambda options, _: Clip(
        np.zeros((options.frames, options.size, options.size, 3), dtype=np.uint8),
        [float(number) for number in range(options.frames)],
    ),
}
"""A decoded value as long as the input allows, of the kinds whose blank is shorter."""


def _target(task: Any, job: Job) -> Target:
    if task.type == "multi_label":
        return [0.0] * len(task.classes or ())
    if task.type == "tagging":
        return [0.0] * getattr(job.inputs[task.input], LENGTHS["text"])
    if task.type == "retrieval":
        return [float("nan")] * 2
    return [1.0, 0.0, 0.0] if task.type == "ranking" else 1.0

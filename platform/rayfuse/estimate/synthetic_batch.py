"""Synthetic training batches of a given length, for resource estimation without reading data."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from rayfuse.data.collate import Batch
from rayfuse.data.rows import Row
from rayfuse.data.samples import Sample, row_value
from rayfuse.data.train_batches import build_train_batch
from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.modalities import Modality, build_modality
from rayfuse.model.tasks import task_class
from rayfuse.spec.base import JobSection, is_missing
from rayfuse.spec.family import CustomConfig, part_options
from rayfuse.spec.feature_cache import cached_inputs, with_running_encoder
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job

_MAX_SAMPLED_ROWS = 256

ConfigT = TypeVar("ConfigT", bound=JobSection)


def with_lengths(job: Job, lengths: Mapping[str, float]) -> Job:
    """Return the job with shorter inputs, by name: tokens, seconds, frames, steps or items.

    Raises SpecError for an unknown input, an input without a length, and a length above the job's own.
    """
    inputs = dict(job.inputs)
    for name, length in lengths.items():
        if name not in inputs:
            raise SpecError(f"--length {name}={length:g}: unknown input; use one of: {', '.join(inputs)}")
        modality = build_modality(inputs[name])
        field = modality.length_field
        if field is None:
            raise SpecError(
                f"--length {name}={length:g}: inputs of type {inputs[name].type} have no length; leave it out"
            )
        maximum = getattr(modality.options, field)
        if not 0 < length <= maximum:
            raise SpecError(
                f"--length {name}={length:g}: inputs.{name}.{field} allows more than 0 and up to {maximum:g}; "
                f"raise it with --set inputs.{name}.{field}=…"
            )
        shorter = modality.options.model_copy(update={field: type(maximum)(length)})
        inputs[name] = _with_options(inputs[name], shorter)
    return job.model_copy(update={"inputs": inputs})


def max_lengths(job: Job) -> dict[str, float]:
    """Return the maximum length of each input that has one: tokens, seconds, frames, steps or items."""
    modalities = {name: build_modality(options) for name, options in job.inputs.items()}
    return {
        name: getattr(modality.options, modality.length_field)
        for name, modality in modalities.items()
        if modality.length_field is not None
    }


def max_input_lengths(job: Job, rows: Iterable[Row]) -> dict[str, int]:
    """Measure the longest value of each padded input over the first 256 rows; media files are not opened."""
    first = [row for row, _ in zip(rows, range(_MAX_SAMPLED_ROWS), strict=False)]
    found = {}
    for name, options in job.inputs.items():
        modality = build_modality(options)
        mask = modality.length_mask
        if mask is not None and modality.value_formats != ("file",):
            found[name] = max([1, *(_value_length(name, options, modality, mask, row) for row in first)])
    return found


def _value_length(name: str, options: Input, modality: Modality, mask: str, row: Row) -> int:
    try:
        value = row_value(name, options, row)
        items = value if options.max_items > 1 and isinstance(value, (list, tuple)) else [value]
        return max(
            (
                modality.process(modality.decode(item))[mask].shape[-1]
                for item in items
                if not is_missing(item)
            ),
            default=0,
        )
    except InvalidInputError:  # the run validates all rows and reports this one
        return 0


def with_assumed_statistics(job: Job) -> tuple[Job, list[str]]:
    """Return the job with assumed values for what training rows determine, and notes about the assumptions."""
    inputs, tasks, notes = dict(job.inputs), dict(job.tasks), []
    for name, options in job.inputs.items():
        assumed, found = build_modality(options).with_assumed_statistics()
        inputs[name] = _with_options(options, assumed)
        notes += [f"{name}: {note}" for note in found]
    for name, task in job.tasks.items():
        assumed, found = task_class(task).with_assumed_statistics(part_options(task))
        tasks[name] = _with_options(task, assumed)
        notes += [f"{name}: {note}" for note in found]
    return job.model_copy(update={"inputs": inputs, "tasks": tasks}), notes


def _with_options(config: ConfigT, options: Any) -> ConfigT:
    """Return a spec model with other options of its implementation; those of a custom part are a field of it."""
    if not isinstance(config, CustomConfig):
        replaced: ConfigT = options
        return replaced
    content = options.model_dump(mode="json") if isinstance(options, BaseModel) else options
    return config.model_copy(update={"options": content})


def make_synthetic_batch(job: Job, rows: int) -> Batch:
    """Make a training batch of a fitted job: `rows` rows that have all inputs, each of the maximum length.

    Input subsets of rows are added as in training. All values differ, so that each is encoded.
    """
    complete = job.model_copy(update={"train": job.train.model_copy(update={"modality_dropout": 0.0})})
    return build_train_batch(range(rows), _SyntheticSamples(complete), complete, epoch=0)  # type: ignore[arg-type]


class _SyntheticSamples:
    """Replacement for a job's samples."""

    def __init__(self, job: Job) -> None:
        self.modalities = {name: build_modality(options) for name, options in job.inputs.items()}
        self.preprocessor = self
        as_words = any(task_class(task).labels_words for task in job.tasks.values())
        self._features = {name: found.longest_features(as_words) for name, found in self.modalities.items()}
        self._items = {name: options.max_items for name, options in job.inputs.items()}
        self._targets = {
            name: task_class(task).dummy_target(part_options(task), job.inputs)
            for name, task in job.tasks.items()
        }

    def __getitem__(self, number: int) -> Sample:
        features = {name: [value] * self._items[name] for name, value in self._features.items()}
        keys = {
            name: [f"{number} {item}".encode() for item in range(count)]
            for name, count in self._items.items()
        }
        return Sample(features, keys, self._targets)

    def __len__(self) -> int:
        return 1


def features_bytes(job: Job) -> int:
    """Return the bytes of a row's features in a synthetic batch."""
    return _SyntheticSamples(job)[0].nbytes


def sample_bytes(job: Job) -> int:
    """Return the bytes of a row's features that a worker reads, without inputs whose features are cached."""
    sample = _SyntheticSamples(job)[0]
    for name in cached_inputs(job):
        items = len(sample.features.pop(name))
        if (running := with_running_encoder(job.inputs[name])) is not None:
            sample.features[name] = [build_modality(running).longest_features()] * items
    return sample.nbytes

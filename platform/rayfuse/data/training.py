"""What training makes of a row in one epoch: augmented, without some inputs, and seen through subsets of them.

All of it is drawn from the seed, the epoch and the row's number, so that it does not depend on which worker reads
the row.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from rayfuse.data.batches import Batch, SampleStore, collate, drop_inputs
from rayfuse.data.samples import Sample
from rayfuse.modalities.augment import augment
from rayfuse.spec.align_losses import ConsistencyLoss
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.train import Draw

_VIEWS = 1  # what sets the seed of a row's subsets apart from that of its dropped inputs
_DRAWS_ALONE: Draw = "random"
"""Which subsets a consistency loss looks at where no loss on subsets says it."""


def training_batch(
    numbers: Iterable[int],
    store: SampleStore,
    job: Job,
    epoch: int,
    teacher: Mapping[str, torch.Tensor] | None = None,
) -> Batch:
    """The rows `numbers` of an epoch, each followed by its views; blanks and fillers as in `collate`.

    The weights of a row's views sum to train.subset_loss.weight; to 0 where only a consistency loss wants them.
    teacher: its answers on all rows of the store, by task: float32 (rows, …).
    """
    samples: list[Sample] = []
    weights: list[float] = []
    source: list[int] = []
    rows: list[int] = []
    draw = _draw(job)
    for number in numbers:
        seed = (job.train.seed, epoch, number)
        changed = augmented(store[number], job.inputs, seed)
        whole = drop_inputs(changed, job.inputs, job.train.input_dropout, seed)
        views = _views(whole, job, draw, np.random.default_rng((*seed, _VIEWS))) if draw else []
        source += [len(samples)] * (1 + len(views))
        weights += [1.0, *[_view_weight(job) / len(views) for _ in views]]
        rows += [number] * (1 + len(views))
        samples += [whole, *views]
    batch = collate(samples, store.maker.modalities, blanks=True)
    if teacher and samples:
        batch = replace(batch, teacher={name: answers[rows] for name, answers in teacher.items()})
    if len(samples) == len(set(source)):
        return batch
    return replace(batch, weights=torch.tensor(weights), source=torch.tensor(source))


def augmented(sample: Sample, inputs: Mapping[str, Input], seed: tuple[int, ...]) -> Sample:
    """The sample with the random changes that its inputs' specs list."""
    features, keys = dict(sample.features), dict(sample.keys)
    for name, items in sample.features.items():
        steps = getattr(inputs[name], "augment", ())  # not every kind of input has some
        if steps:
            chance = np.random.default_rng((*seed, zlib.crc32(name.encode())))
            features[name] = [augment(inputs[name].type, steps, item, chance) for item in items]
            mark = repr(seed).encode()
            keys[name] = [key + mark + bytes([place]) for place, key in enumerate(sample.keys[name])]
    return Sample(features, keys, sample.targets)


def subsets_of(
    sample: Sample, inputs: Mapping[str, Input], draw: Draw, chance: np.random.Generator
) -> list[list[str]]:
    """Proper subsets of the inputs that a sample has, with all required ones; none where there is no such subset.

    `random`: one, its size drawn first, so that small ones are as common as large ones of many inputs.
    """
    optional = [name for name in inputs if name in sample.features and inputs[name].optional]
    required = [name for name in inputs if name in sample.features and not inputs[name].optional]
    sizes = range(0 if required else 1, len(optional))
    if not sizes:
        return []
    if draw == "random":
        size = int(chance.choice(sizes))
        return [[*required, *chance.choice(optional, size, replace=False).tolist()]]
    chosen = (1,) if draw == "single" and len(optional) > 1 else sizes
    return [[*required, *names] for size in chosen for names in combinations(optional, size)]


def _views(sample: Sample, job: Job, draw: Draw, chance: np.random.Generator) -> list[Sample]:
    return [
        Sample({name: sample.features[name] for name in names}, sample.keys, sample.targets)
        for names in subsets_of(sample, job.inputs, draw, chance)
    ]


def _draw(job: Job) -> Draw | None:
    if job.train.subset_loss:
        return job.train.subset_loss.draw
    return _DRAWS_ALONE if any(isinstance(loss, ConsistencyLoss) for loss in job.align.loss) else None


def _view_weight(job: Job) -> float:
    return job.train.subset_loss.weight if job.train.subset_loss else 0.0

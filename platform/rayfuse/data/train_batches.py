"""Training batches: rows with augmentation, modality dropout and views of subsets of their inputs.

All of it is drawn from the seed, the epoch and the row's index, so that it does not depend on the worker.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.sampler import SampleCache, drop_modalities
from rayfuse.data.samples import Sample
from rayfuse.modalities.augment import augment
from rayfuse.spec.align_losses import ConsistencyLossConfig
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.train import SubsetSampling

_SUBSET_SEED = 1  # separates the seed of a row's subsets from that of its modality dropout
_DEFAULT_SAMPLING: SubsetSampling = "random"
"""Subsets of a consistency loss in a job without `train.subset_loss`."""


def build_train_batch(
    indices: Iterable[int],
    sample_cache: SampleCache,
    job: Job,
    epoch: int,
    teacher_outputs: Mapping[str, torch.Tensor] | None = None,
) -> Batch:
    """Build the batch of some rows in an epoch, each followed by its views; dummies and fillers as in `collate`.

    The weights of a row's views sum to train.subset_loss.weight, or to 0 if only a consistency loss uses them.

    teacher_outputs: outputs of the teacher on all rows, by task: float32 (rows, …).
    """
    samples: list[Sample] = []
    weights: list[float] = []
    source: list[int] = []
    rows: list[int] = []
    sampling = _subset_sampling(job)
    for index in indices:
        seed = (job.train.seed, epoch, index)
        augmented = augment_sample(sample_cache[index], job.inputs, seed)
        sample = drop_modalities(augmented, job.inputs, job.train.modality_dropout, seed)
        rng = np.random.default_rng((*seed, _SUBSET_SEED))
        views = _subset_views(sample, job, sampling, rng) if sampling else []
        source += [len(samples)] * (1 + len(views))
        weights += [1.0, *[_view_weight(job) / len(views) for _ in views]]
        rows += [index] * (1 + len(views))
        samples += [sample, *views]
    batch = collate(samples, sample_cache.preprocessor.modalities, add_dummies=True)
    if teacher_outputs and samples:
        batch = replace(
            batch, teacher_outputs={name: outputs[rows] for name, outputs in teacher_outputs.items()}
        )
    if len(samples) == len(set(source)):
        return batch
    return replace(batch, weights=torch.tensor(weights), source_index=torch.tensor(source))


def augment_sample(sample: Sample, inputs: Mapping[str, Input], seed: tuple[int, ...]) -> Sample:
    """Apply the augmentations of the inputs' specs to a sample."""
    features, keys = dict(sample.features), dict(sample.keys)
    for name, items in sample.features.items():
        steps = getattr(inputs[name], "augment", ())  # some types of input have none
        if steps:
            rng = np.random.default_rng((*seed, zlib.crc32(name.encode())))
            features[name] = [augment(inputs[name].type, steps, item, rng) for item in items]
            suffix = repr(seed).encode()
            keys[name] = [key + suffix + bytes([place]) for place, key in enumerate(sample.keys[name])]
    return Sample(features, keys, sample.targets)


def sample_subsets(
    sample: Sample, inputs: Mapping[str, Input], sampling: SubsetSampling, rng: np.random.Generator
) -> list[list[str]]:
    """Return proper subsets of a sample's inputs, each with all required inputs; an empty list if there are none.

    `random` draws one subset: its size first, so that small and large subsets are equally common.
    """
    optional = [name for name in inputs if name in sample.features and inputs[name].optional]
    required = [name for name in inputs if name in sample.features and not inputs[name].optional]
    sizes = range(0 if required else 1, len(optional))
    if not sizes:
        return []
    if sampling == "random":
        size = int(rng.choice(sizes))
        return [[*required, *rng.choice(optional, size, replace=False).tolist()]]
    chosen = (1,) if sampling == "single" and len(optional) > 1 else sizes
    return [[*required, *names] for size in chosen for names in combinations(optional, size)]


def _subset_views(
    sample: Sample, job: Job, sampling: SubsetSampling, rng: np.random.Generator
) -> list[Sample]:
    return [
        Sample({name: sample.features[name] for name in names}, sample.keys, sample.targets)
        for names in sample_subsets(sample, job.inputs, sampling, rng)
    ]


def _subset_sampling(job: Job) -> SubsetSampling | None:
    if job.train.subset_loss:
        return job.train.subset_loss.sampling
    return (
        _DEFAULT_SAMPLING if any(isinstance(loss, ConsistencyLossConfig) for loss in job.align.loss) else None
    )


def _view_weight(job: Job) -> float:
    return job.train.subset_loss.weight if job.train.subset_loss else 0.0

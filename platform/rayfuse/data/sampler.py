"""Order of the rows in an epoch, and the cache of their decoded samples."""

from collections.abc import Mapping, Sequence

import numpy as np

from rayfuse.data.cached_features import add_cached_features
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.data.store import RowDataset
from rayfuse.data.validation import GROUPS, LENGTHS
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job

_MEGABATCH_SIZE = 50
"""Batches whose rows are sorted by length together; limited to half of an epoch, so that epochs differ."""


class BatchSampler:
    """Row indices of each worker at each step: a pure function of the seed and the arguments below.

    A global batch has the same rows for any number of workers; each takes every `world_size`-th of them. The last
    batch of an epoch may be smaller, and some workers may then have no rows.

    groups: integers (rows,); rows of equal groups follow one another, so that only a batch border separates them.
    lengths: integers (rows,); each batch has rows of similar length, sorted by it, so that micro-batches and workers do
    too.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        groups: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._groups = None if groups is None else _factorize(groups)
        if lengths is not None and self._groups is not None:
            lengths = _group_means(lengths, self._groups)
        self._lengths = lengths
        self._cached_order: tuple[int, np.ndarray] = (-1, np.empty(0))

    @classmethod
    def from_job(cls, rows: Sequence[Row], job: Job) -> "BatchSampler":
        """Build the sampler of a job's training rows, with the groups and lengths that validation stored."""
        train = job.train
        groups = lengths = None
        if isinstance(rows, RowDataset):
            groups = rows.get_column(GROUPS)
            lengths = rows.get_column(LENGTHS) if train.group_by_length else None
        return cls(
            len(rows), train.batch_size, train.gradient_accumulation_steps, train.seed, groups, lengths
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_rows // self.batch_size)

    def step_indices(self, epoch: int, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        """Return the row indices of each micro-batch of one worker at one step: int32 (rows,) each."""
        batch = self._epoch_order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return [part[rank::world_size] for part in np.array_split(batch, self.gradient_accumulation_steps)]

    def global_batch_size(self, step: int) -> int:
        """Return the number of rows of a global batch."""
        return min(self.batch_size, self.num_rows - step * self.batch_size)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Return all rows in the order of an epoch: int32 (rows,)."""
        cached_epoch, order = self._cached_order
        if cached_epoch != epoch:
            self._cached_order = (-1, np.empty(0))  # large for many rows: never two at a time
            order = self._shuffle(np.random.default_rng([self.seed, epoch]))
            self._cached_order = (epoch, order)
        return order

    def _shuffle(self, rng: np.random.Generator) -> np.ndarray:
        order = np.arange(self.num_rows, dtype=np.int32)
        rng.shuffle(order)
        if self._groups is not None:
            ranks = rng.permutation(int(self._groups.max(initial=-1)) + 1).astype(np.int32)
            order = order[np.argsort(ranks[self._groups[order]], kind="stable")]
        return order if self._lengths is None else self._group_by_length(order, self._lengths, rng)

    def _group_by_length(
        self, order: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Sort by length within megabatches, then shuffle the batches, as `group_by_length` of transformers does.

        The last batch stays last, as it may be smaller.
        """
        batches = min(_MEGABATCH_SIZE, max(1, self.steps_per_epoch // 2))
        size = batches * self.batch_size
        for start in range(0, self.num_rows, size):
            part = order[start : start + size]
            order[start : start + size] = part[np.argsort(-lengths[part], kind="stable")]
        num_full = self.num_rows // self.batch_size
        full = order[: num_full * self.batch_size].reshape(num_full, self.batch_size)
        rng.shuffle(full, axis=0)
        return order


def _factorize(groups: np.ndarray) -> np.ndarray:
    """Replace groups by consecutive integers from 0: int32 (rows,)."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int32)


def _group_means(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean length of each row's group: float32 (rows,)."""
    sums = np.bincount(groups, weights=lengths)
    return (sums / np.maximum(1, np.bincount(groups))).astype(np.float32)[groups]


class SampleCache:
    """Samples of rows by index, decoded at first access and cached up to a memory limit.

    cached_indices: by input whose features are cached, the cached value of each row: int32 (rows, items), -1 for none.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        preprocessor: Preprocessor,
        max_bytes: int = 1 << 30,
        cached_indices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.rows = rows
        self.preprocessor = preprocessor
        self.cached_indices = cached_indices or {}
        self._free_bytes = max_bytes
        self._samples: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples.get(index)
        if sample is None:
            sample = add_cached_features(self._preprocess(self.rows[index]), self.cached_indices, index)
            if sample.nbytes <= self._free_bytes:
                self._free_bytes -= sample.nbytes
                self._samples[index] = sample
        return sample

    def empty_copy(self, max_bytes: int) -> "SampleCache":
        """Return an empty cache of the same rows."""
        return SampleCache(self.rows, self.preprocessor, max_bytes, self.cached_indices)

    def _preprocess(self, row: Row) -> Sample:
        try:
            return self.preprocessor.from_row(row)
        except InvalidInputError as error:
            raise DataError(f"{row.origin}: {error}; the row was valid when the run started") from None

    def __len__(self) -> int:
        return len(self.rows)


def drop_modalities(
    sample: Sample, inputs: Mapping[str, Input], probability: float, seed: tuple[int, ...]
) -> Sample:
    """Drop each optional input of a sample with a probability; a sample that would be left empty is unchanged.

    The choice depends on `seed` alone, so that it is the same on every worker.
    """
    if not probability:
        return sample
    draws = np.random.default_rng(seed).random(len(inputs))
    dropped = {n for n, draw in zip(inputs, draws, strict=True) if draw < probability and inputs[n].optional}
    kept = {name: features for name, features in sample.features.items() if name not in dropped}
    return Sample(kept, sample.keys, sample.targets) if kept else sample

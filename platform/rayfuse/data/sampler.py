"""Order of the rows in an epoch, and the cache of their decoded samples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rayfuse.data.cached_features import add_cached_features
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor, Sample, changed_file_message, content_digest
from rayfuse.data.store import Blocks, RowDataset
from rayfuse.data.targets import target_reader
from rayfuse.data.validation import (
    GROUPS,
    LENGTHS,
    content_digests_column,
    file_inputs,
    loss_weights_column,
    weighted_tasks,
)
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job

_MEGABATCH_SIZE = 50
"""Batches whose rows are sorted by length together; limited to half of an epoch, so that epochs differ."""


class GlobalBatch(NamedTuple):
    """Size of a batch over all workers and gradient accumulation steps, which its losses are divided by."""

    rows: int
    """Number of rows."""
    loss_weights: Mapping[str, float]
    """Sum of the rows' weights in tasks whose rows do not count equally, by task."""

    @property
    def loss_factors(self) -> dict[str, float]:
        """Factor that turns the summed loss of a task with weighted rows into `rows` times its weighted mean."""
        return {name: self.rows / weight for name, weight in self.loss_weights.items()}


class BatchSampler:
    """Row indices of each worker at each step: a pure function of the seed and the arguments below.

    A global batch has the same rows for any number of workers; each takes every `world_size`-th of them. The last
    batch of an epoch may be smaller, and some workers may then have no rows.

    groups: integers (rows,); rows of equal groups follow one another, so that only a batch border separates them.
    lengths: integers (rows,); each batch has rows of similar length, sorted by it, so that micro-batches and workers do
    too.
    windows: rows are shuffled within windows of their blocks.
    loss_weights: by task whose rows do not count equally, float (rows,).
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        groups: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        windows: "Windows | None" = None,
        loss_weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._loss_weights = loss_weights or {}
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._groups = None if groups is None else _factorize(groups)
        if lengths is not None and self._groups is not None:
            lengths = _group_means(lengths, self._groups)
        self._lengths, self._windows = lengths, windows
        self._cached_order: tuple[int, np.ndarray] = (-1, np.empty(0))

    @classmethod
    def from_job(cls, rows: Sequence[Row], job: Job) -> "BatchSampler":
        """Build the sampler of a job's training rows, with the groups and lengths that validation stored."""
        train = job.train
        groups = lengths = windows = None
        if isinstance(rows, RowDataset):
            groups = rows.get_column(GROUPS)
            lengths = rows.get_column(LENGTHS) if train.group_by_length else None
            windows = Windows.from_job(rows.blocks(), job)
        return cls(
            len(rows),
            train.batch_size,
            train.gradient_accumulation_steps,
            train.seed,
            groups,
            lengths,
            windows,
            {name: _loss_weights(rows, name, job) for name in weighted_tasks(job.tasks)},
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_rows // self.batch_size)

    def step_indices(self, epoch: int, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        """Return the row indices of each micro-batch of one worker at one step: int32 (rows,) each."""
        batch = self._epoch_order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return [part[rank::world_size] for part in np.array_split(batch, self.gradient_accumulation_steps)]

    def global_batch(self, epoch: int, step: int) -> GlobalBatch:
        """Return the size of a global batch."""
        batch = self._epoch_order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        sums = {name: float(weights[batch].sum()) for name, weights in self._loss_weights.items()}
        return GlobalBatch(len(batch), sums)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Return all rows in the order of an epoch: int32 (rows,)."""
        cached_epoch, order = self._cached_order
        if cached_epoch != epoch:
            self._cached_order = (-1, np.empty(0))  # large for many rows: never two at a time
            order = self._shuffle(np.random.default_rng([self.seed, epoch]))
            self._cached_order = (epoch, order)
        return order

    def _shuffle(self, rng: np.random.Generator) -> np.ndarray:
        if self._windows is None:
            order = np.arange(self.num_rows, dtype=np.int32)
            rng.shuffle(order)
            return self._group(order, rng)
        parts = self._windows.shuffle(rng)
        return np.concatenate([self._group(part, rng) for part in parts])

    def _group(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Reorder shuffled rows by their groups and lengths."""
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
        batches = min(_MEGABATCH_SIZE, max(1, -(-len(order) // self.batch_size) // 2))
        size = batches * self.batch_size
        for start in range(0, len(order), size):
            part = order[start : start + size]
            order[start : start + size] = part[np.argsort(-lengths[part], kind="stable")]
        num_full = len(order) // self.batch_size
        full = order[: num_full * self.batch_size].reshape(num_full, self.batch_size)
        rng.shuffle(full, axis=0)
        return order


class Windows:
    """Windows of blocks that fit into the disk cache of a machine, each read once per epoch.

    Each window is a sequence of shuffled blocks. A lane takes some of its blocks, and row i of a window is one of lane
    i mod `lanes`, so that each of `lanes` workers reads only its own blocks, but for the ends of the lanes.
    """

    def __init__(self, blocks: Blocks, window_bytes: int, lanes: int) -> None:
        self._window_bytes, self._lanes, self._num_bytes = window_bytes, lanes, blocks.num_bytes
        self._rows = np.argsort(blocks.of_rows, kind="stable").astype(np.int32)
        self._ends = np.cumsum(np.bincount(blocks.of_rows, minlength=len(blocks.num_bytes)))

    @classmethod
    def from_job(cls, blocks: Blocks | None, job: Job) -> "Windows | None":
        """Build the windows of a job's rows: half of `compute.disk_cache` each; None if all blocks fit into it."""
        limit = job.compute.disk_cache
        if blocks is None or blocks.num_bytes.sum() <= limit:
            return None
        return cls(blocks, limit // 2, job.compute.max_workers)

    def shuffle(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the rows of each window in a random order: int32 (rows of the window,) each."""
        order = rng.permutation(len(self._num_bytes))
        window_of = (np.cumsum(self._num_bytes[order]) - 1).clip(0) // self._window_bytes
        starts = np.flatnonzero(np.diff(window_of, prepend=-1))
        return [self._shuffle_window(blocks, rng) for blocks in np.split(order, starts[1:])]

    def _shuffle_window(self, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        lanes: list[list[np.ndarray]] = [[] for _ in range(self._lanes)]
        sizes = np.zeros(self._lanes, dtype=np.int64)
        for block in blocks:
            lane = int(sizes.argmin())
            start = self._ends[block - 1] if block else 0
            lanes[lane].append(self._rows[start : self._ends[block]])
            sizes[lane] += self._ends[block] - start
        shuffled = [rng.permutation(np.concatenate(lane)) for lane in lanes if lane]
        places = np.concatenate([np.arange(len(lane)) for lane in shuffled])
        return np.concatenate(shuffled)[np.argsort(places, kind="stable")]


def _loss_weights(rows: Sequence[Row], task: str, job: Job) -> np.ndarray:
    """Return the weight of each row in the mean loss of a task: float32 (rows,), as stored or from the rows."""
    stored = rows.get_column(loss_weights_column(task)) if isinstance(rows, RowDataset) else None
    if stored is not None:
        return stored
    reader = target_reader(job.tasks[task], job.inputs)
    weights = [job.tasks[task].loss_weight(reader.read(row.values)) for row in rows]
    return np.array(weights, dtype=np.float32)


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

    Raises DataError for a row that was valid when the rows were validated and is no longer, or whose files have changed.
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
        self._content_digests = _content_digests(rows, preprocessor)
        self._free_bytes = max_bytes
        self._samples: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples.get(index)
        if sample is None:
            sample = add_cached_features(self._preprocess(index), self.cached_indices, index)
            if sample.nbytes <= self._free_bytes:
                self._free_bytes -= sample.nbytes
                self._samples[index] = sample
        return sample

    def empty_copy(self, max_bytes: int) -> "SampleCache":
        """Return an empty cache of the same rows."""
        return SampleCache(self.rows, self.preprocessor, max_bytes, self.cached_indices)

    def _preprocess(self, index: int) -> Sample:
        row = self.rows[index]
        try:
            sample = self.preprocessor.from_row(row)
        except InvalidInputError as error:
            raise DataError(f"{row.origin}: {error}; the row was valid when the run started") from None
        for name, digests in self._content_digests.items():
            if content_digest(sample.keys.get(name, ())) != digests[index]:
                raise DataError(changed_file_message(name, self.preprocessor.inputs[name], row))
        return sample

    def __len__(self) -> int:
        return len(self.rows)


def _content_digests(rows: Sequence[Row], preprocessor: Preprocessor) -> dict[str, np.ndarray]:
    """Return what validation has stored about the files that are read again: uint64 (rows,) by input."""
    if not isinstance(rows, RowDataset):
        return {}
    names = [name for name in file_inputs(preprocessor.inputs) if name not in preprocessor.cached_inputs]
    stored = {name: rows.get_column(content_digests_column(name)) for name in names}
    return {name: digests for name, digests in stored.items() if digests is not None}


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

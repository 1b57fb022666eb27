"""Which rows make which batch, and how samples become tensors with presence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rayfuse.data.checking import GROUPS, LENGTHS
from rayfuse.data.encoded import with_encoded
from rayfuse.data.rows import Row
from rayfuse.data.samples import Sample, SampleMaker
from rayfuse.data.store import Rows
from rayfuse.errors import BadInput, DataError
from rayfuse.modalities import Features, Modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Target

_MEGABATCH = 50
"""Batches of which the rows are sorted by length together; at most half of an epoch, which then differs from others."""


@dataclass(frozen=True)
class EncoderBatch:
    """The distinct values of one input in a batch.

    features: tensors of `unique` rows each; index: int64 (batch, items), which of them each sample has, -1 for
    none. `features` is None where no sample has the input and nobody asked for a blank one.
    """

    features: dict[str, torch.Tensor] | None
    index: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of some samples.

    targets: float32 (batch,), or (batch, longest) with NaN where a sample has fewer. weights: float32 (batch,), of
    each sample's loss; 0 for a filler that only keeps ranks in step.
    """

    inputs: dict[str, EncoderBatch]
    targets: dict[str, torch.Tensor]
    weights: torch.Tensor
    source: torch.Tensor | None = None
    """int64 (batch,): of which row each row is a view with fewer inputs, itself for whole samples; None: all whole."""
    teacher: dict[str, torch.Tensor] | None = None
    """What a teacher answers on each row's whole sample, by task: float32 (batch, …)."""

    @property
    def whole(self) -> torch.Tensor:
        """Which rows are samples with all of their inputs, and no fillers: bool (batch,)."""
        rows = torch.arange(self.size, device=self.weights.device)
        return (self.weights > 0) & (rows == (rows if self.source is None else self.source))

    @property
    def size(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device) -> "Batch":
        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        inputs = {
            name: EncoderBatch(
                None if part.features is None else {k: move(v) for k, v in part.features.items()},
                move(part.index),
            )
            for name, part in self.inputs.items()
        }
        return Batch(
            inputs,
            {k: move(v) for k, v in self.targets.items()},
            move(self.weights),
            None if self.source is None else move(self.source),
            None if self.teacher is None else {k: move(v) for k, v in self.teacher.items()},
        )

    def subset(self, names: Sequence[str]) -> "Batch":
        """The same samples as if only the inputs `names` had been given."""
        inputs = {
            name: part if name in names else EncoderBatch(part.features, torch.full_like(part.index, -1))
            for name, part in self.inputs.items()
        }
        return replace(self, inputs=inputs)


def collate(samples: Sequence[Sample], modalities: Mapping[str, Modality], blanks: bool = False) -> Batch:
    """Stack samples; equal values of an input are kept once.

    With `blanks`, an input that no sample has gets one blank value, so that its encoder still runs and
    every rank takes part in its collectives; no samples at all become one filler of weight 0.
    """
    weights = torch.ones(len(samples))
    if not samples:
        samples, weights = [Sample({}, {}, {})], torch.zeros(1)
    inputs = {name: _collate_input(name, samples, modality, blanks) for name, modality in modalities.items()}
    names = {name for sample in samples for name in sample.targets}
    targets = {name: _collate_targets([sample.targets[name] for sample in samples]) for name in sorted(names)}
    return Batch(inputs, targets, weights)


def _collate_input(name: str, samples: Sequence[Sample], modality: Modality, blanks: bool) -> EncoderBatch:
    positions: dict[bytes, int] = {}
    distinct: list[Features] = []
    most = max(len(sample.features.get(name, ())) for sample in samples)
    index = np.full((len(samples), max(1, most)), -1, dtype=np.int64)
    for i, sample in enumerate(samples):
        items = zip(sample.keys[name], sample.features[name], strict=True) if name in sample.features else ()
        for item, (key, features) in enumerate(items):
            if key not in positions:
                positions[key] = len(distinct)
                distinct.append(features)
            index[i, item] = positions[key]
    if not distinct and not blanks:
        return EncoderBatch(None, torch.from_numpy(index))
    stacked = modality.collate(distinct or [modality.blank()])
    return EncoderBatch({k: torch.as_tensor(v) for k, v in stacked.items()}, torch.from_numpy(index))


def _collate_targets(targets: list[Target]) -> torch.Tensor:
    if not isinstance(targets[0], list):
        return torch.tensor(targets, dtype=torch.float32)
    padded = np.full((len(targets), max(map(len, targets))), np.nan, dtype=np.float32)  # type: ignore[arg-type]
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = target  # type: ignore[arg-type]
    return torch.from_numpy(padded)


class Plan:
    """Which rows each worker reads at each step: a function of the seed and the numbers below alone.

    A global batch is the same rows whatever the number of workers; each takes every `world`-th of them.
    The last batch of an epoch may be smaller, and then some workers may get nothing.

    groups: integers (rows,), equal for rows that should meet: they follow each other, so that only a border between
    batches parts them. lengths: integers (rows,); a batch is then made of rows of about the same length, and sorted by
    it, so that each micro-batch and each worker gets rows of like length too.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        groups: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.rows, self.batch_size, self.accumulate, self.seed = rows, batch_size, accumulate, seed
        self._groups = None if groups is None else _numbered(groups)
        self._lengths = lengths if lengths is None or self._groups is None else _means(lengths, self._groups)
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0))

    @classmethod
    def of(cls, rows: Sequence[Row], job: Job) -> "Plan":
        """The plan of a job's training rows; a store has noted their groups and lengths."""
        noted = rows.noted if isinstance(rows, Rows) else lambda name: None
        lengths = noted(LENGTHS) if job.train.group_by_length else None
        train = job.train
        return cls(len(rows), train.batch_size, train.accumulate, train.seed, noted(GROUPS), lengths)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.rows // self.batch_size)

    def step(self, epoch: int, step: int, rank: int, world: int) -> list[np.ndarray]:
        """Row numbers of each micro-batch of one worker at one step."""
        batch = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return [part[rank::world] for part in np.array_split(batch, self.accumulate)]

    def size(self, step: int) -> int:
        """Rows of a global batch."""
        return min(self.batch_size, self.rows - step * self.batch_size)

    def _order(self, epoch: int) -> np.ndarray:
        """All rows in the order of an epoch: int32 (rows,)."""
        known, order = self._latest
        if known != epoch:
            self._latest = (-1, np.empty(0))  # it may be large: not two at a time
            order = self._shuffled(np.random.default_rng([self.seed, epoch]))
            self._latest = (epoch, order)
        return order

    def _shuffled(self, chance: np.random.Generator) -> np.ndarray:
        order = np.arange(self.rows, dtype=np.int32)
        chance.shuffle(order)
        if self._groups is not None:
            places = chance.permutation(int(self._groups.max(initial=-1)) + 1).astype(np.int32)
            order = order[np.argsort(places[self._groups[order]], kind="stable")]
        return order if self._lengths is None else self._by_length(order, self._lengths, chance)

    def _by_length(self, order: np.ndarray, lengths: np.ndarray, chance: np.random.Generator) -> np.ndarray:
        """Sort by length inside of megabatches, then shuffle the batches, as transformers' group_by_length does.

        The last batch stays the last, as it may be smaller.
        """
        batches = min(_MEGABATCH, max(1, self.steps // 2))
        size = batches * self.batch_size
        for start in range(0, self.rows, size):
            part = order[start : start + size]
            order[start : start + size] = part[np.argsort(-lengths[part], kind="stable")]
        whole = self.rows // self.batch_size
        full = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        chance.shuffle(full, axis=0)
        return order


def _numbered(groups: np.ndarray) -> np.ndarray:
    """The groups numbered from 0: int32 (rows,)."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int32)


def _means(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean length of each row's group: float32 (rows,)."""
    sums = np.bincount(groups, weights=lengths)
    return (sums / np.maximum(1, np.bincount(groups))).astype(np.float32)[groups]


class SampleStore:
    """Samples of rows by their number; made when first asked for, kept while they fit in memory.

    encoded: by input, which of the values that are encoded already each row has: int32 (rows, items), -1 for none.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        maker: SampleMaker,
        keep_bytes: int = 1 << 30,
        encoded: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.rows = rows
        self.maker = maker
        self.encoded = encoded or {}
        self._free = keep_bytes
        self._kept: dict[int, Sample] = {}

    def __getitem__(self, number: int) -> Sample:
        sample = self._kept.get(number)
        if sample is None:
            sample = with_encoded(self._make(self.rows[number]), self.encoded, number)
            if sample.size <= self._free:
                self._free -= sample.size
                self._kept[number] = sample
        return sample

    def emptied(self, keep_bytes: int) -> "SampleStore":
        """The same rows with nothing kept yet."""
        return SampleStore(self.rows, self.maker, keep_bytes, self.encoded)

    def _make(self, row: Row) -> Sample:
        try:
            return self.maker.from_row(row)
        except BadInput as error:
            raise DataError(f"{row.origin}: {error}; it could be read when the run began") from None

    def __len__(self) -> int:
        return len(self.rows)


def drop_inputs(
    sample: Sample, inputs: Mapping[str, Input], probability: float, seed: tuple[int, ...]
) -> Sample:
    """The sample without some of its optional inputs, but never without all of its inputs.

    The choice depends on `seed` alone, so that it is the same whichever worker reads the row.
    """
    if not probability:
        return sample
    chances = np.random.default_rng(seed).random(len(inputs))
    dropped = {n for n, c in zip(inputs, chances, strict=True) if c < probability and inputs[n].optional}
    kept = {name: features for name, features in sample.features.items() if name not in dropped}
    return Sample(kept, sample.keys, sample.targets) if kept else sample

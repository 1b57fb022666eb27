"""Collation of samples into batches, with the presence of each input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rayfuse.data.samples import Sample
from rayfuse.modalities import Features, Modality
from rayfuse.spec.tasks import MultiHot, Target


@dataclass(frozen=True)
class EncoderBatch:
    """Distinct values of one input in a batch, and the values of each sample."""

    features: dict[str, torch.Tensor] | None
    """Tensors of `num_distinct` rows each; None if no sample has the input and no dummy was requested."""
    index: torch.Tensor
    """int64 (batch, items): rows of `features` by sample; -1 for padding."""


@dataclass(frozen=True)
class Batch:
    """Tensors of several samples."""

    inputs: dict[str, EncoderBatch]
    """By input name."""
    targets: dict[str, torch.Tensor]
    """By task: float32 (batch,), or (batch, longest) padded with NaN."""
    weights: torch.Tensor
    """float32 (batch,): weight of each sample's loss; 0 for a filler that keeps the ranks in step."""
    source_index: torch.Tensor | None = None
    """int64 (batch,): the complete sample that each row is a view of; None if all rows are complete."""
    teacher_outputs: dict[str, torch.Tensor] | None = None
    """Teacher outputs on each row's complete sample, by task: float32 (batch, …)."""

    @property
    def is_full(self) -> torch.Tensor:
        """Mask of complete samples, without views and fillers: bool (batch,)."""
        rows = torch.arange(self.batch_size, device=self.weights.device)
        return (self.weights > 0) & (rows == (rows if self.source_index is None else self.source_index))

    @property
    def batch_size(self) -> int:
        """Number of rows, with views and fillers."""
        return len(self.weights)

    def to(self, device: torch.device) -> "Batch":
        """Return a copy on a device; the copy is asynchronous where memory is pinned."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def map_tensors(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """Return a batch with the results of a function of each tensor."""

        def map_dict(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: fn(tensor) for name, tensor in tensors.items()}

        return Batch(
            {
                name: EncoderBatch(None if part.features is None else map_dict(part.features), fn(part.index))
                for name, part in self.inputs.items()
            },
            map_dict(self.targets),
            fn(self.weights),
            None if self.source_index is None else fn(self.source_index),
            None if self.teacher_outputs is None else map_dict(self.teacher_outputs),
        )

    def select_inputs(self, names: Sequence[str]) -> "Batch":
        """Return the same samples with all inputs but `names` marked as absent."""
        inputs = {
            name: part if name in names else EncoderBatch(part.features, torch.full_like(part.index, -1))
            for name, part in self.inputs.items()
        }
        return replace(self, inputs=inputs)


def collate(
    samples: Sequence[Sample], modalities: Mapping[str, Modality], add_dummies: bool = False
) -> Batch:
    """Stack samples; equal values of an input are stored once.

    With `add_dummies`, an input that no sample has gets one dummy value, so that its encoder still runs and every rank
    takes part in its collectives. An empty list of samples becomes one filler of weight 0.
    """
    weights = torch.ones(len(samples))
    if not samples:
        samples, weights = [Sample({}, {}, {})], torch.zeros(1)
    inputs = {
        name: _collate_input(name, samples, modality, add_dummies) for name, modality in modalities.items()
    }
    names = {name for sample in samples for name in sample.targets}
    targets = {name: _collate_targets([sample.targets[name] for sample in samples]) for name in sorted(names)}
    return Batch(inputs, targets, weights)


def _collate_input(
    name: str, samples: Sequence[Sample], modality: Modality, add_dummies: bool
) -> EncoderBatch:
    positions: dict[bytes, int] = {}
    distinct: list[Features] = []
    max_items = max(len(sample.features.get(name, ())) for sample in samples)
    index = np.full((len(samples), max(1, max_items)), -1, dtype=np.int64)
    for i, sample in enumerate(samples):
        items = zip(sample.keys[name], sample.features[name], strict=True) if name in sample.features else ()
        for item, (key, features) in enumerate(items):
            if key not in positions:
                positions[key] = len(distinct)
                distinct.append(features)
            index[i, item] = positions[key]
    if not distinct and not add_dummies:
        return EncoderBatch(None, torch.from_numpy(index))
    stacked = modality.collate(distinct or [modality.dummy_features()])
    return EncoderBatch({k: torch.as_tensor(v) for k, v in stacked.items()}, torch.from_numpy(index))


def _collate_targets(targets: list[Target]) -> torch.Tensor:
    if isinstance(targets[0], MultiHot):
        return _collate_multi_hot(targets)  # type: ignore[arg-type]
    if not isinstance(targets[0], list):
        return torch.tensor(targets, dtype=torch.float32)
    padded = np.full((len(targets), max(map(len, targets))), np.nan, dtype=np.float32)  # type: ignore[arg-type]
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = target  # type: ignore[arg-type]
    return torch.from_numpy(padded)


def _collate_multi_hot(targets: Sequence[MultiHot]) -> torch.Tensor:
    found = torch.zeros(len(targets), targets[0].size)
    for row, target in zip(found, targets, strict=True):
        row[list(target.positions)] = 1.0
    return found

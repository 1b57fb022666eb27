"""Base classes of alignment losses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from rayfuse.data.collate import Batch
from rayfuse.model.all_gather import all_gather_with_grad
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import Tokens, mean_pool


@dataclass(frozen=True)
class AlignedRows:
    """Aligned inputs and task outputs of a training batch."""

    inputs: Mapping[str, Tokens]
    """Aligned tokens of each input: float (batch, tokens, dim), and mask, bool (batch, tokens), False where absent."""
    outputs: Mapping[str, torch.Tensor]
    """Raw outputs of each task: float (batch, …)."""
    heads: Mapping[str, TaskHead]
    """Head of each task."""
    batch: Batch
    """The batch itself."""


class AlignmentLoss(ABC):
    """Auxiliary loss without parameters.

    options: the spec model of a built-in loss; the `Options` of a custom one, or the mapping of the spec.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        """Return the loss of each row, float32 (batch,): 0 for rows without it, and for filler rows.

        Every rank calls it in every step, regardless of its rows.
        """


class PairLoss(AlignmentLoss):
    """Loss over pairs of inputs: the mean over all pairs that a row with all of its inputs (no view of it) has.

    Rows are compared with those of all workers, so every worker must pass the same inputs.
    """

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        # bf16 does not resolve differences of similarities.
        with torch.autocast(rows.batch.weights.device.type, enabled=False):
            return self._mean_over_pairs(rows)

    def _mean_over_pairs(self, rows: AlignedRows) -> torch.Tensor:
        unit = {
            name: nn.functional.normalize(mean_pool(*tokens).float(), dim=1)
            for name, tokens in rows.inputs.items()
        }
        present = {name: mask.any(dim=1) & rows.batch.is_full for name, (_, mask) in rows.inputs.items()}
        all_unit = {name: all_gather_with_grad(vectors) for name, vectors in unit.items()}
        all_present = {name: all_gather_with_grad(mask)[0] for name, mask in present.items()}
        total = torch.zeros(rows.batch.batch_size, device=rows.batch.weights.device)
        pairs = torch.zeros_like(total)
        for first, second in combinations(rows.inputs, 2):
            both = present[first] & present[second]
            (first_vectors, start), (second_vectors, _) = all_unit[first], all_unit[second]
            positive_index = start + torch.arange(rows.batch.batch_size, device=total.device)
            columns = torch.arange(len(first_vectors), device=total.device)
            negative_mask = (all_present[first] & all_present[second]).unsqueeze(0) & (
                positive_index.unsqueeze(1) != columns
            )
            forward = self.pair_loss(unit[first] @ second_vectors.T, positive_index, negative_mask)
            backward = self.pair_loss(unit[second] @ first_vectors.T, positive_index, negative_mask)
            total = total + (forward + backward) / 2 * both
            pairs = pairs + both
        return total / pairs.clamp(min=1)

    @abstractmethod
    def pair_loss(
        self, similarity: torch.Tensor, positive_index: torch.Tensor, negative_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each row from one input to another, float32 (batch,), finite also without negatives.

        similarity: cosine similarities with the rows of all workers, float32 (batch, all rows). positive_index: column
        of the row's own other input, int64 (batch,). negative_mask: columns of other rows with both inputs, bool
        (batch, all rows).
        """


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the unmasked values of each row, float (batch,); 0 if all are masked."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

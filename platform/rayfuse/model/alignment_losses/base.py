"""What every alignment loss offers, and what those over pairs of inputs share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from rayfuse.data.batches import Batch
from rayfuse.model.gathering import gather_rows
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import Tokens, mean_token


@dataclass(frozen=True)
class AlignedRows:
    """What a model made of a batch while training."""

    inputs: Mapping[str, Tokens]
    """Each aligned input: float (batch, tokens, dim) and bool (batch, tokens), False where absent."""
    outputs: Mapping[str, torch.Tensor]
    """Of each task: float (batch, …)."""
    heads: Mapping[str, TaskHead]
    batch: Batch


class AlignmentLoss(ABC):
    """Has no parameters of its own."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        """The loss of each row, float32 (batch,): 0 for rows that it has nothing to say about, and for fillers.

        Every rank calls it in every step, whatever its rows hold.
        """


class PairLoss(AlignmentLoss):
    """A loss on every pair of inputs that a whole row has: the mean over its pairs.

    Rows are compared with those of all workers, so each worker must call it with the same inputs.
    """

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        # Differences of similarities matter, which bf16 does not hold.
        with torch.autocast(rows.batch.weights.device.type, enabled=False):
            return self._mean_over_pairs(rows)

    def _mean_over_pairs(self, rows: AlignedRows) -> torch.Tensor:
        unit = {
            name: nn.functional.normalize(mean_token(*part).float(), dim=1)
            for name, part in rows.inputs.items()
        }
        there = {name: mask.any(dim=1) & rows.batch.whole for name, (_, mask) in rows.inputs.items()}
        everyone = {name: gather_rows(vectors) for name, vectors in unit.items()}
        there_everywhere = {name: gather_rows(mask)[0] for name, mask in there.items()}
        total = torch.zeros(rows.batch.size, device=rows.batch.weights.device)
        pairs = torch.zeros_like(total)
        for first, second in combinations(rows.inputs, 2):
            both = there[first] & there[second]
            both_everywhere = there_everywhere[first] & there_everywhere[second]
            (firsts, start), (seconds, _) = everyone[first], everyone[second]
            own = start + torch.arange(rows.batch.size, device=total.device)
            others = both_everywhere.unsqueeze(0) & (
                own.unsqueeze(1) != torch.arange(len(firsts), device=total.device)
            )
            forth = self.pair(unit[first] @ seconds.T, own, others)
            back = self.pair(unit[second] @ firsts.T, own, others)
            total = total + (forth + back) / 2 * both
            pairs = pairs + both
        return total / pairs.clamp(min=1)

    @abstractmethod
    def pair(self, similarity: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The loss of each row, float32 (batch,), from one of its inputs to another.

        similarity: cosines, float32 (batch, everyone); own: int64 (batch,), the column of the row's own other input;
        others: bool (batch, everyone), the columns of other rows that have both. Finite also where there are none.
        """


def mean_over(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen values of each row, float (batch,); 0 where none is."""
    return (values * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)

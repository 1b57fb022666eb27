"""Hinge on similarity."""

import torch

from rayfuse.model.alignment_losses.base import PairLoss, mean_over
from rayfuse.spec.align_losses import MarginLoss


class Margin(PairLoss):
    """The mean of max(0, margin - cos of the own pair + cos of a mismatch) over mismatches (Frome et al., 2013)."""

    def __init__(self, options: MarginLoss) -> None:
        self.margin = options.margin

    def pair(self, similarity: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        match = similarity.gather(1, own.unsqueeze(1))
        return mean_over((self.margin - match + similarity).relu(), others)

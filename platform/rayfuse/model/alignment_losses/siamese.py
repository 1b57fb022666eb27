"""Cosine embedding loss."""

import torch

from rayfuse.model.alignment_losses.base import PairLoss, mean_over
from rayfuse.spec.align_losses import SiameseLoss


class Siamese(PairLoss):
    """1 - cos of a row's pair, and the mean of max(0, cos - margin) over mismatches (Hadsell et al., 2006)."""

    def __init__(self, options: SiameseLoss) -> None:
        self.margin = options.margin

    def pair(self, similarity: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        match = similarity.gather(1, own.unsqueeze(1)).squeeze(1)
        return 1 - match + mean_over((similarity - self.margin).relu(), others)

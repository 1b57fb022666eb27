"""Hinge loss on similarities."""

import torch

from rayfuse.model.alignment_losses.base import PairLoss, masked_mean
from rayfuse.spec.align_losses import MarginLossConfig


class Margin(PairLoss):
    """Mean of max(0, margin - cos(positive) + cos(negative)) over negatives (DeViSE, Frome et al., 2013)."""

    def __init__(self, options: MarginLossConfig) -> None:
        self.margin = options.margin

    def pair_loss(
        self, similarity: torch.Tensor, positive_index: torch.Tensor, negative_mask: torch.Tensor
    ) -> torch.Tensor:
        positive = similarity.gather(1, positive_index.unsqueeze(1))
        return masked_mean((self.margin - positive + similarity).relu(), negative_mask)

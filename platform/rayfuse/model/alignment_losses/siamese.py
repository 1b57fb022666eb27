"""Cosine embedding loss."""

import torch

from rayfuse.model.alignment_losses.base import PairLoss, masked_mean
from rayfuse.spec.align_losses import SiameseLossConfig


class Siamese(PairLoss):
    """1 - cos(positive), plus the mean of max(0, cos(negative) - margin) over negatives (Hadsell et al., 2006)."""

    def __init__(self, options: SiameseLossConfig) -> None:
        self.margin = options.margin

    def pair_loss(
        self, similarity: torch.Tensor, positive_index: torch.Tensor, negative_mask: torch.Tensor
    ) -> torch.Tensor:
        positive = similarity.gather(1, positive_index.unsqueeze(1)).squeeze(1)
        return 1 - positive + masked_mean((similarity - self.margin).relu(), negative_mask)

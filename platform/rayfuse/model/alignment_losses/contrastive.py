"""InfoNCE loss."""

import torch
from torch import nn

from rayfuse.model.alignment_losses.base import PairLoss
from rayfuse.spec.align_losses import ContrastiveLossConfig


class Contrastive(PairLoss):
    """Cross-entropy of a row's own other input among those of all rows (InfoNCE, van den Oord et al., 2018)."""

    def __init__(self, options: ContrastiveLossConfig) -> None:
        self.temperature = options.temperature

    def pair_loss(
        self, similarity: torch.Tensor, positive_index: torch.Tensor, negative_mask: torch.Tensor
    ) -> torch.Tensor:
        candidates = negative_mask.scatter(1, positive_index.unsqueeze(1), True)
        logits = (similarity / self.temperature).masked_fill(~candidates, torch.finfo(similarity.dtype).min)
        return nn.functional.cross_entropy(logits, positive_index, reduction="none")

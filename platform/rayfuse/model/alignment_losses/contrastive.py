"""InfoNCE."""

import torch
from torch import nn

from rayfuse.model.alignment_losses.base import PairLoss
from rayfuse.spec.align_losses import ContrastiveLoss


class Contrastive(PairLoss):
    """Cross-entropy of finding a row's own other input among those of all rows (van den Oord et al., 2018)."""

    def __init__(self, options: ContrastiveLoss) -> None:
        self.temperature = options.temperature

    def pair(self, similarity: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        candidates = others.scatter(1, own.unsqueeze(1), True)
        logits = (similarity / self.temperature).masked_fill(~candidates, torch.finfo(similarity.dtype).min)
        return nn.functional.cross_entropy(logits, own, reduction="none")

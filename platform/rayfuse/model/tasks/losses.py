"""Losses over classes that can favour rare and hard rows."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.spec.tasks.classes import ClassLoss


class ClassCriterion(nn.Module):
    """Cross-entropy as a task's spec wants it: class weights, focal factor, label smoothing.

    Its methods are called by name and not as a module: ranks whose batch is a filler have no loss, and ZeRO-3 wants
    every rank to call the same modules in the same order.
    """

    weights: torch.Tensor | None

    def __init__(self, options: ClassLoss, names: Sequence[str]) -> None:
        super().__init__()
        self.focal, self.smoothing = options.focal, options.label_smoothing
        weights = options.weights_of(names)
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def multiclass(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each row, float32 (rows,). logits: (rows, classes); targets: int64 (rows,)."""
        logits = logits.float()
        loss = nn.functional.cross_entropy(
            logits, targets, self.weights, reduction="none", label_smoothing=self.smoothing
        )
        if not self.focal:
            return loss
        right = logits.log_softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
        return loss * (-torch.expm1(right)).clamp(min=1e-7) ** self.focal

    def binary(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each yes or no, float32 (rows, classes): a class's weight is that of its presence."""
        logits = logits.float()
        smooth = targets * (1 - self.smoothing) + self.smoothing / 2
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=self.weights, reduction="none"
        )
        if not self.focal:
            return loss
        wrong = torch.sigmoid(torch.where(targets > 0.5, -logits, logits))
        return loss * wrong.clamp(min=1e-7) ** self.focal

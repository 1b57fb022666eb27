"""Classification losses with class weights, focal factor and label smoothing."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.spec.tasks.classes import ClassLossConfig


class ClassCriterion(nn.Module):
    """Cross-entropy with the class weights, focal factor and label smoothing of a task's spec.

    Call its methods by name, not the module: ranks whose batch is padding compute no loss, and ZeRO-3 requires every
    rank to call the same modules in the same order.
    """

    weights: torch.Tensor | None

    def __init__(self, options: ClassLossConfig, names: Sequence[str]) -> None:
        super().__init__()
        self.focal_gamma, self.label_smoothing = options.focal_gamma, options.label_smoothing
        weights = options.weights_of(names)
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def multiclass(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each row, float32 (rows,). logits: (rows, classes); targets: int64 (rows,)."""
        logits = logits.float()
        loss = nn.functional.cross_entropy(
            logits, targets, self.weights, reduction="none", label_smoothing=self.label_smoothing
        )
        if not self.focal_gamma:
            return loss
        right = logits.log_softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
        return loss * (-torch.expm1(right)).clamp(min=1e-7) ** self.focal_gamma

    def binary(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each class of each row, float32 (rows, classes); weights apply to present classes.

        logits: (rows, classes); targets: 0 or 1 (rows, classes).
        """
        logits = logits.float()
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=self.weights, reduction="none"
        )
        if not self.focal_gamma:
            return loss
        wrong = torch.sigmoid(torch.where(targets > 0.5, -logits, logits))
        return loss * wrong.clamp(min=1e-7) ** self.focal_gamma

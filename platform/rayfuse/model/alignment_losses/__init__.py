"""Alignment losses: auxiliary losses that pull the inputs of a row together."""

from rayfuse.model.alignment_losses.base import AlignedRows, AlignmentLoss
from rayfuse.spec.align_losses import ALIGNMENT_LOSSES, AlignLossConfig


def build_alignment_loss(options: AlignLossConfig) -> AlignmentLoss:
    """Build one of the losses of `align.loss`. Raises SpecError if a custom class cannot be loaded."""
    loss: AlignmentLoss = ALIGNMENT_LOSSES.build(options)
    return loss


__all__ = ["AlignedRows", "AlignmentLoss", "build_alignment_loss"]

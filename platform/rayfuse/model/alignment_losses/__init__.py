"""Losses beside the tasks' own that bring what a row's inputs say closer together."""

from rayfuse.model.alignment_losses.base import AlignedRows, AlignmentLoss
from rayfuse.model.alignment_losses.consistency import Consistency
from rayfuse.model.alignment_losses.contrastive import Contrastive
from rayfuse.model.alignment_losses.margin import Margin
from rayfuse.model.alignment_losses.siamese import Siamese
from rayfuse.spec.align_losses import AlignLoss

ALIGNMENT_LOSSES: dict[str, type[AlignmentLoss]] = {
    "contrastive": Contrastive,
    "siamese": Siamese,
    "margin": Margin,
    "consistency": Consistency,
}


def build_alignment_loss(options: AlignLoss) -> AlignmentLoss:
    """One of the losses under `align.loss`."""
    return ALIGNMENT_LOSSES[options.type](options)


__all__ = ["ALIGNMENT_LOSSES", "AlignedRows", "AlignmentLoss", "build_alignment_loss"]

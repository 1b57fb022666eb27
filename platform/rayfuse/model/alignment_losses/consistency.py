"""Answers from fewer inputs agree with those from all."""

import torch

from rayfuse.model.alignment_losses.base import AlignedRows, AlignmentLoss
from rayfuse.spec.align_losses import ConsistencyLoss


class Consistency(AlignmentLoss):
    """Divergence of each view's answers from those of its whole row, which get no gradient; mean over a row's views.

    Summed over the tasks; each task's head says how far apart answers are.
    """

    def __init__(self, options: ConsistencyLoss) -> None: ...

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        source = rows.batch.source
        total = torch.zeros_like(rows.batch.weights)
        for name, head in rows.heads.items():
            outputs = rows.outputs[name]
            wanted = outputs.detach() if source is None else outputs.detach()[source]
            total = total + head.divergence(outputs, wanted)
        if source is None:
            return total * 0
        views = (source != torch.arange(len(source), device=source.device)).float()
        each = torch.zeros_like(views).index_add(0, source, views)
        return total * views / each.clamp(min=1)[source]

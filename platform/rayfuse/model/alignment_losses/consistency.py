"""Consistency of predictions from subsets of inputs with those from all inputs."""

import torch

from rayfuse.model.alignment_losses.base import AlignedRows, AlignmentLoss
from rayfuse.spec.align_losses import ConsistencyLossConfig


class Consistency(AlignmentLoss):
    """Divergence of the outputs of each view (a subset of inputs) from those of its full row, summed over tasks.

    The mean over a row's views; the full row gets no gradient. Heads define the divergence of their outputs.
    """

    options: ConsistencyLossConfig

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        source = rows.batch.source_index
        total = torch.zeros_like(rows.batch.weights)
        for name, head in rows.heads.items():
            outputs = rows.outputs[name]
            target = outputs.detach() if source is None else outputs.detach()[source]
            total = total + head.divergence(outputs, target)
        if source is None:
            return total * 0
        views = (source != torch.arange(len(source), device=source.device)).float()
        views_per_row = torch.zeros_like(views).index_add(0, source, views)
        return total * views / views_per_row.clamp(min=1)[source]

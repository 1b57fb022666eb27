"""An alignment loss: the variance between the inputs of a row."""

import torch
from pydantic import Field

from rayfuse.model.alignment_losses import AlignedRows, AlignmentLoss
from rayfuse.model.tokens import mean_pool
from rayfuse.spec.base import SpecModel


class VarianceLoss(AlignmentLoss):
    """Mean variance of each dimension over the inputs, of rows with all inputs."""

    class Options(SpecModel):
        scale: float = Field(1.0, gt=0)
        """Divisor of the aligned vectors."""

    options: Options

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        vectors = torch.stack([mean_pool(*tokens).float() for tokens in rows.inputs.values()])
        has_all = torch.stack([mask.any(dim=1) for _, mask in rows.inputs.values()]).all(dim=0)
        variance = (vectors / self.options.scale).var(dim=0, correction=0).mean(dim=1)
        return variance * (has_all & rows.batch.is_full)

"""A fusion: the mean of the present inputs."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from rayfuse.model.fusion import FusionModule, FusionOutput
from rayfuse.model.tokens import Tokens, mean_pool
from rayfuse.spec.base import SpecModel


class MeanFusion(FusionModule):
    """Mean of the present inputs, with dropout."""

    class Options(SpecModel):
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout rate of the mean."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors = torch.stack([mean_pool(*tokens) for tokens in inputs.values()], dim=1)
        present = torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1)
        weights = present / present.sum(dim=1, keepdim=True).clamp(min=1)
        return {"vector": self.dropout(mean_pool(vectors, present)), "attention": weights}

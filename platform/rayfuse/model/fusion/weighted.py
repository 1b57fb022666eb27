"""Weighted fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, masked_softmax, mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import WeightedFusionConfig as Options


class WeightedFusion(FusionModule):
    """Weighted mean of the present inputs, with a learned weight per input, normalized to a sum of 1."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.scores = nn.Parameter(torch.zeros(len(inputs)))
        self.layers = build_mlp(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present(inputs)
        weights = masked_softmax(self.scores.expand(present.shape), present)
        return {"vector": self.layers((vectors * weights.unsqueeze(2)).sum(dim=1)), "attention": weights}

"""Max-pooling fusion."""

from collections.abc import Sequence

import torch

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, mean_pool_inputs, presence_mask
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import MaxPoolFusionConfig as Options


class MaxPoolFusion(FusionModule):
    """Maximum of each feature over the means of the present inputs; zeros for samples without any."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.layers = build_mlp(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_inputs(inputs), presence_mask(inputs)
        lowest = torch.finfo(vectors.dtype).min
        pooled = vectors.masked_fill(~present.unsqueeze(2), lowest).amax(dim=1)
        return {"vector": self.layers(pooled.masked_fill(~present.any(dim=1, keepdim=True), 0.0))}

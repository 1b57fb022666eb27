"""Residual MLP fusion."""

from collections.abc import Sequence

from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import ResidualBlock, concat_with_presence, mean_pool_inputs, presence_mask
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import MlpFusionConfig as Options


class MlpFusion(FusionModule):
    """Residual blocks (He et al., 2016) over the concatenated means of the inputs (placeholders if absent) and presence flags."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        width = options.hidden
        self.layers = nn.Sequential(
            nn.Linear(len(inputs) * (dim + 1), width),
            *(ResidualBlock(width, 2 * width, options.dropout) for _ in range(options.blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, dim),
        )

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        return {"vector": self.layers(concat_with_presence(mean_pool_inputs(inputs), presence_mask(inputs)))}

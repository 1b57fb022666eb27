"""Inputs side by side, through residual blocks."""

from collections.abc import Sequence

from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import ResidualBlock, means, presence, side_by_side
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import MlpFusion as Options


class MlpFusion(FusionModule):
    """Residual blocks (He et al., 2016) over what concat joins: means or placeholders, and presence."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        width = options.hidden
        self.layers = nn.Sequential(
            nn.Linear(len(inputs) * (dim + 1), width),
            *(ResidualBlock(width, 2 * width, options.dropout) for _ in range(options.blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, dim),
        )

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        return {"vector": self.layers(side_by_side(means(inputs), presence(inputs)))}

"""Sum fusion."""

from collections.abc import Sequence

from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import SumFusionConfig as Options


class SumFusion(FusionModule):
    """Sum of the means of the present inputs; parameters do not depend on the input."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.norm = nn.LayerNorm(dim)
        self.layers = build_mlp(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, _ = mean_pool_present(inputs)
        return {"vector": self.layers(self.norm(vectors.sum(dim=1)))}

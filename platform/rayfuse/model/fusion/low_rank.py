"""Low-rank fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import LowRankFusionConfig as Options


class LowRankFusion(FusionModule):
    """Low-rank multimodal fusion (Liu et al., 2018).

    The outer product of the inputs, each with a 1 appended, times a weight tensor of rank `rank`, computed as a
    product over inputs of linear layers, summed over ranks. An absent input contributes only its bias. Biases are
    initialized to 1, so that the product of many inputs neither vanishes nor explodes.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.rank = options.rank
        self.factors = nn.ModuleList(nn.Linear(dim, options.rank * dim) for _ in inputs)
        for factor in self.factors:
            nn.init.ones_(factor.bias)  # type: ignore[arg-type]
        self.rank_weights = nn.Linear(options.rank, 1)
        self.dropout = nn.Dropout(options.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, _ = mean_pool_present(inputs)
        product = torch.ones((), device=vectors.device)
        for factor, vector in zip(self.factors, vectors.unbind(dim=1), strict=True):
            product = product * factor(self.dropout(vector)).unflatten(1, (-1, self.rank))
        return {"vector": self.norm(self.rank_weights(product).squeeze(2))}

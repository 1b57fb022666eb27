"""Products of the inputs' features, without the tensor of all of them."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import present_means
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import LowRankFusion as Options


class LowRankFusion(FusionModule):
    """Low-rank multimodal fusion (Liu et al., 2018).

    The outer product of the inputs, each with a 1 appended, times a weight tensor of rank `rank`: a product over
    inputs of linear maps, summed over ranks. Of an absent input only the 1 remains: a learned constant. All
    constants start at 1, so that a product of many inputs neither vanishes nor grows.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.rank = options.rank
        self.factors = nn.ModuleList(nn.Linear(dim, options.rank * dim) for _ in inputs)
        for factor in self.factors:
            nn.init.ones_(factor.bias)  # type: ignore[arg-type]
        self.ranks = nn.Linear(options.rank, 1)
        self.dropout = nn.Dropout(options.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, _ = present_means(inputs)
        product = torch.ones((), device=vectors.device)
        for factor, vector in zip(self.factors, vectors.unbind(dim=1), strict=True):
            product = product * factor(self.dropout(vector)).unflatten(1, (-1, self.rank))
        return {"vector": self.norm(self.ranks(product).squeeze(2))}

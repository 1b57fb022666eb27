"""The mean of the inputs with learned weights."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import perceptron, present_means, shares
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import WeightedFusion as Options


class WeightedFusion(FusionModule):
    """One weight per input, the same for all samples; those of the inputs that a sample has sum to 1."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.scores = nn.Parameter(torch.zeros(len(inputs)))
        self.layers = perceptron(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = present_means(inputs)
        weights = shares(self.scores.expand(present.shape), present)
        return {"vector": self.layers((vectors * weights.unsqueeze(2)).sum(dim=1)), "attention": weights}

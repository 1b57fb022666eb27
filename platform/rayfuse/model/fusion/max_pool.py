"""The largest value of each feature."""

from collections.abc import Sequence

import torch

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import means, perceptron, presence
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import MaxPoolFusion as Options


class MaxPoolFusion(FusionModule):
    """The maximum over the inputs' means; zeros for a sample without any."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.layers = perceptron(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = means(inputs), presence(inputs)
        lowest = torch.finfo(vectors.dtype).min
        largest = vectors.masked_fill(~present.unsqueeze(2), lowest).amax(dim=1)
        return {"vector": self.layers(largest.masked_fill(~present.any(dim=1, keepdim=True), 0.0))}

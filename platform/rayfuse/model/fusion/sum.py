"""The sum of the inputs."""

from collections.abc import Sequence

from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import perceptron, present_means
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import SumFusion as Options


class SumFusion(FusionModule):
    """Adds up each input's mean over its tokens; no parameter knows which input is which."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.norm = nn.LayerNorm(dim)
        self.layers = perceptron(dim, options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, _ = present_means(inputs)
        return {"vector": self.layers(self.norm(vectors.sum(dim=1)))}

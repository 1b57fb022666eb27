"""Inputs side by side, through a multilayer perceptron."""

from collections.abc import Sequence

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import means, perceptron, presence, side_by_side
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import ConcatFusion as Options


class ConcatFusion(FusionModule):
    """Each input's mean over its tokens (its placeholder where absent), and one number for its presence."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.layers = perceptron(len(inputs) * (dim + 1), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        return {"vector": self.layers(side_by_side(means(inputs), presence(inputs)))}

"""Concatenation fusion."""

from collections.abc import Sequence

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, concat_with_presence, mean_pool_inputs, presence_mask
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import ConcatFusionConfig as Options


class ConcatFusion(FusionModule):
    """Multilayer perceptron over the concatenated means of the inputs (placeholders if absent) and presence flags."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.layers = build_mlp(len(inputs) * (dim + 1), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        return {"vector": self.layers(concat_with_presence(mean_pool_inputs(inputs), presence_mask(inputs)))}

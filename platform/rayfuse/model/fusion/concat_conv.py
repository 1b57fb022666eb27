"""Inputs as the channels of a signal, through a 1-d convolution."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import means, perceptron, presence
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import ConcatConvFusion as Options


class ConcatConvFusion(FusionModule):
    """Convolves along the features, over each input's mean (its placeholder where absent) as one channel."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.convolution = nn.Conv1d(len(inputs), options.channels, options.kernel, padding="same")
        self.layers = perceptron(options.channels * dim + len(inputs), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        mixed = nn.functional.gelu(self.convolution(means(inputs))).flatten(1)
        return {"vector": self.layers(torch.cat([mixed, presence(inputs).to(mixed.dtype)], dim=1))}

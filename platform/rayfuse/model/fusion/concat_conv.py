"""Convolutional fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, mean_pool_inputs, presence_mask
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import ConcatConvFusionConfig as Options


class ConcatConvFusion(FusionModule):
    """1-d convolution along the features, with the mean of each input (placeholder if absent) as a channel."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.convolution = nn.Conv1d(len(inputs), options.channels, options.kernel_size, padding="same")
        self.layers = build_mlp(options.channels * dim + len(inputs), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        convolved = nn.functional.gelu(self.convolution(mean_pool_inputs(inputs))).flatten(1)
        return {
            "vector": self.layers(torch.cat([convolved, presence_mask(inputs).to(convolved.dtype)], dim=1))
        }

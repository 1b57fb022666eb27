"""Inputs side by side, through a multilayer perceptron."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.tokens import Tokens, mean_token
from rayfuse.spec.fusion import ConcatFusion as Options


class ConcatFusion(FusionModule):
    """Each input's mean over its tokens (its placeholder where absent), and one number for its presence."""

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        layers: list[nn.Module] = []
        width = len(inputs) * (dim + 1)
        for _ in range(options.layers):
            layers += [nn.Linear(width, options.hidden), nn.GELU(), nn.Dropout(options.dropout)]
            width = options.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        parts = []
        for tokens, mask in inputs.values():
            parts += [mean_token(tokens, mask), mask.any(dim=1, keepdim=True).to(tokens.dtype)]
        return {"vector": self.layers(torch.cat(parts, dim=1))}

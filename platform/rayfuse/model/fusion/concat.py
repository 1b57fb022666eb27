"""Inputs side by side, through a multilayer perceptron."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.encoders.base import Tokens
from rayfuse.model.fusion.base import FusionModule
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

    def forward(self, inputs: dict[str, Tokens]) -> torch.Tensor:
        parts = []
        for tokens, mask in inputs.values():
            present = mask.any(dim=1, keepdim=True)
            weights = mask.to(tokens.dtype).unsqueeze(2)
            mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
            parts += [torch.where(present, mean, tokens[:, 0]), present.to(tokens.dtype)]
        return self.layers(torch.cat(parts, dim=1))

"""Alignment by a multilayer perceptron."""

from itertools import pairwise

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import MLPAlignConfig


class MLPAlignment(Alignment):
    """Linear layers with GELU between them, and layer norm, applied to each token."""

    def __init__(self, options: MLPAlignConfig, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        sizes = [width, *[options.hidden] * (options.layers - 1)]
        hidden: list[nn.Module] = []
        for before, after in pairwise(sizes):
            hidden += [nn.Linear(before, after), nn.GELU(), nn.Dropout(options.dropout)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], dim), nn.LayerNorm(dim))

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.layers(tokens), mask

"""A multilayer perceptron."""

from itertools import pairwise

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import MLPAlign


class MLPAlignment(Alignment):
    """Linear maps with GELU between them and a layer norm, each token by itself."""

    def __init__(self, options: MLPAlign, width: int) -> None:
        super().__init__(options, width)
        sizes = [width, *[options.hidden] * (options.layers - 1)]
        hidden: list[nn.Module] = []
        for before, after in pairwise(sizes):
            hidden += [nn.Linear(before, after), nn.GELU(), nn.Dropout(options.dropout)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], options.dim), nn.LayerNorm(options.dim))

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.layers(tokens), mask

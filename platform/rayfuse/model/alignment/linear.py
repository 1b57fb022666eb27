"""One linear map."""

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import LinearAlign


class LinearAlignment(Alignment):
    """A linear map and a layer norm, each token by itself."""

    def __init__(self, options: LinearAlign, width: int) -> None:
        super().__init__(options, width)
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(width, options.dim)
        self.norm = nn.LayerNorm(options.dim) if options.norm else nn.Identity()

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.norm(self.linear(self.dropout(tokens))), mask

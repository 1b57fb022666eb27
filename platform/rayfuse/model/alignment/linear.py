"""Linear alignment."""

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import LinearAlignConfig


class LinearAlignment(Alignment):
    """Linear projection and layer norm of each token."""

    def __init__(self, options: LinearAlignConfig, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim) if options.norm else nn.Identity()

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.norm(self.linear(self.dropout(tokens))), mask

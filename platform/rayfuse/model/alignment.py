"""Bring every input to one width, and stand in for those that are absent."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Tokens


class LinearAlignment(nn.Module):
    """Tokens of one input (unique, tokens, width) and who has them → (batch, tokens, dim) with its mask.

    A sample without the input gets a learned placeholder in its first token, and a mask of False.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        self.placeholder = nn.Parameter(torch.zeros(dim))

    def forward(self, encoded: Tokens | None, index: torch.Tensor) -> Tokens:
        if encoded is None:
            return self.placeholder.expand(len(index), 1, -1), torch.zeros(
                len(index), 1, dtype=torch.bool, device=index.device
            )
        tokens, mask = encoded
        aligned = self.norm(self.linear(tokens))
        present = (index >= 0).unsqueeze(1)
        rows = index.clamp(min=0)
        return torch.where(present.unsqueeze(2), aligned[rows], self.placeholder), mask[rows] & present

"""What every alignment offers."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import Align


class Alignment(nn.Module, ABC):
    """Brings the encoded values of one input to the common width, and stands in for those that are absent."""

    def __init__(self, options: Align, width: int) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(options.dim))

    @abstractmethod
    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        """Tokens (values, tokens, width) and their mask → (values, tokens, dim) and its mask."""

    def forward(self, encoded: Tokens | None, index: torch.Tensor) -> Tokens:
        """Tokens of the distinct values, and which of them each sample has → (batch, tokens, dim) with its mask.

        index: int64 (batch, items), -1 for none. Where a sample lacks an item, the item's tokens are a learned
        placeholder with a mask of False.
        """
        batch, items = index.shape
        if encoded is None:
            nothing = torch.zeros(batch, items, dtype=torch.bool, device=index.device)
            return self.placeholder.expand(batch, items, -1), nothing
        aligned, mask = self.align(*encoded)
        present = (index >= 0).unsqueeze(2)
        rows = index.clamp(min=0)
        tokens = torch.where(present.unsqueeze(3), aligned[rows], self.placeholder)
        return tokens.flatten(1, 2), (mask[rows] & present).flatten(1, 2)

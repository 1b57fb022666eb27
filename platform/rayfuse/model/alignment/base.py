"""What every alignment offers."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import Align

_STILL = 1e-6
"""A deviation that is none."""


class Standards(nn.Module):
    """Brings tokens to mean 0 and deviation 1 in every dimension, once it has observed some (Salimans and Kingma, 2016,
    initialise by data in the same way)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.observed: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Tokens (values, tokens, width), float32; those that the mask leaves out count for nothing."""
        tokens = tokens.float()
        if self.observed is not None:
            seen = tokens[mask].double()
            self.observed += torch.stack([torch.ones_like(seen), seen, seen.square()]).sum(dim=1)
        return (tokens - self.mean) / self.deviation

    def observe(self) -> None:
        """Begin to sum up what comes through: counts, sums and squares in `observed`, float64 (3, width)."""
        self.observed = torch.zeros(3, len(self.mean), dtype=torch.float64, device=self.mean.device)

    def settle(self) -> None:
        """Standardize by what was observed; by nothing where that was nothing or did not differ."""
        assert self.observed is not None, "nothing was observed"
        count, total, squares = self.observed
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > _STILL, deviation, 1.0))
        self.observed = None


class Alignment(nn.Module, ABC):
    """Brings the encoded values of one input to the common width, and stands in for those that are absent."""

    def __init__(self, options: Align, width: int) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(options.dim))
        self.standards = Standards(width) if options.standardize else None

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
        tokens, mask = encoded
        aligned, mask = self.align(self.standards(tokens, mask) if self.standards else tokens, mask)
        present = (index >= 0).unsqueeze(2)
        rows = index.clamp(min=0)
        tokens = torch.where(present.unsqueeze(3), aligned[rows], self.placeholder)
        return tokens.flatten(1, 2), (mask[rows] & present).flatten(1, 2)

"""Base class of alignments, and standardization of their inputs."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from rayfuse.model.tokens import Tokens

_MIN_STD = 1e-6
"""Standard deviations up to this are treated as zero variance and not divided by."""


class Standardizer(nn.Module):
    """Standardization of every dimension of tokens to mean 0 and standard deviation 1.

    Data-dependent initialization as of Salimans and Kingma, 2016: the identity until `finalize`, which takes mean and
    deviation from the tokens seen since `start_accumulating`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.accumulated: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Standardize tokens (values, tokens, width) to float32; masked tokens are not accumulated."""
        tokens = tokens.float()
        if self.accumulated is not None:
            unmasked = tokens[mask].double()
            self.accumulated += torch.stack([torch.ones_like(unmasked), unmasked, unmasked.square()]).sum(1)
        return (tokens - self.mean) / self.std

    def start_accumulating(self) -> None:
        """Accumulate counts, sums and sums of squares of later tokens in `accumulated`, float64 (3, width)."""
        self.accumulated = torch.zeros(3, len(self.mean), dtype=torch.float64, device=self.mean.device)

    def finalize(self) -> None:
        """Set mean and deviation from the accumulated sums; dimensions without variance keep a deviation of 1."""
        assert self.accumulated is not None, "call start_accumulating first"
        count, total, squares = self.accumulated
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(deviation > _MIN_STD, deviation, 1.0))
        self.accumulated = None


class Alignment(nn.Module, ABC):
    """Projection of one input's encoded values to the common width `dim`, with a learned placeholder if absent."""

    def __init__(self, options: Any, width: int, dim: int) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(dim))
        self.standardizer: Standardizer | None = None

    def standardize(self, width: int) -> None:
        """Standardize the encoder's tokens, `width` wide, before they are aligned."""
        self.standardizer = Standardizer(width)

    @abstractmethod
    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        """Project tokens (values, tokens, width) and their mask to (values, tokens, dim) and its mask."""

    def forward(self, encoded: Tokens | None, index: torch.Tensor) -> Tokens:
        """Align the tokens of distinct values and distribute them to samples: (batch, tokens, dim) and its mask.

        encoded: tokens of the distinct values in the batch, None if there are none. index: int64 (batch, items), the
        value of each item, -1 for none. The tokens of a missing item are the placeholder with a mask of False.
        """
        batch, items = index.shape
        if encoded is None:
            absent = torch.zeros(batch, items, dtype=torch.bool, device=index.device)
            return self.placeholder.expand(batch, items, -1), absent
        tokens, mask = encoded
        aligned, mask = self.align(self.standardizer(tokens, mask) if self.standardizer else tokens, mask)
        present = (index >= 0).unsqueeze(2)
        rows = index.clamp(min=0)
        tokens = torch.where(present.unsqueeze(3), aligned[rows], self.placeholder)
        return tokens.flatten(1, 2), (mask[rows] & present).flatten(1, 2)

"""An alignment through a narrow layer."""

import torch
from pydantic import Field
from torch import nn

from rayfuse.model.alignment import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.base import SpecModel


class LowRankAlignment(Alignment):
    """A linear map of low rank."""

    class Options(SpecModel):
        rank: int = Field(4, ge=1)
        """Rank of the map."""

    def __init__(self, options: Options, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        self.linear = nn.Sequential(nn.Linear(width, options.rank), nn.Linear(options.rank, dim))

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.linear(tokens), mask

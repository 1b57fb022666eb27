"""What every fusion offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.base import Tokens


class FusionModule(nn.Module, ABC):
    """Joins aligned inputs: {input: (float (batch, tokens, dim), bool (batch, tokens))} → (batch, dim)."""

    def __init__(self, options: Any, dim: int, inputs: Sequence[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: dict[str, Tokens]) -> torch.Tensor:
        """One vector for each row."""

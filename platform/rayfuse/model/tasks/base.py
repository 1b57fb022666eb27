"""What every task offers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tokens import Fused


class TaskHead(nn.Module, ABC):
    """Answers one task of a job."""

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fused: Fused) -> torch.Tensor:
        """Raw outputs, float (batch, …)."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each sample, float32 (batch,). targets: float32 (batch, …), NaN where a sample has fewer."""

    @abstractmethod
    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """What a caller gets for each sample: plain JSON values."""

    @abstractmethod
    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """The metrics that the task's spec promises, but for the loss."""

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """More than single numbers, for reports: plain JSON values."""
        return {}

"""What every task offers."""

from typing import Any

import numpy as np
import torch
from torch import nn


class TaskHead(nn.Module):
    """Answers from a fused vector, float (batch, dim)."""

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__()

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """Raw outputs, float (batch, …)."""
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each sample, float32 (batch,)."""
        raise NotImplementedError

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """What a caller gets for each sample: plain JSON values."""
        raise NotImplementedError

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """The metrics that the task's spec promises, but for the loss."""
        raise NotImplementedError

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """More than single numbers, for reports: plain JSON values."""
        return {}

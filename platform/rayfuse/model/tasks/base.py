"""What every task offers."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from rayfuse.model.tokens import Fused


class TaskHead(nn.Module, ABC):
    """Answers one task of a job."""

    mixes: ClassVar[bool] = False
    """Whether it answers from the fused vector alone, and each sample for itself, so that mixup may mix vectors."""
    compares: ClassVar[bool] = False
    """Whether a row's loss looks at other rows, so that it is only asked about whole rows, not about their views."""

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

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """How far the outputs of each sample are from others of the same shape, float32 (batch,); 0 where equal.

        It falls with the square of the difference, as both distillation and consistency expect. Unless a task says
        otherwise: the mean of the squared differences.
        """
        return (outputs.float() - target_outputs.float()).square().flatten(1).mean(dim=1)

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """More than single numbers, for reports: plain JSON values."""
        return {}

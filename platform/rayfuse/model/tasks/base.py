"""What every task offers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tokens import Fused


class TaskHead(nn.Module, ABC):
    """Answers one task of a job.

    Evaluation joins the outputs of many batches: their shapes beyond the first axis may differ, and the shorter ones
    are padded with NaN.
    """

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fused: Fused) -> torch.Tensor:
        """Raw outputs, float (batch, …)."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each sample, float32 (batch,). targets: float32 (batch, …), NaN where a sample has fewer."""

    def idle(self, outputs: torch.Tensor) -> torch.Tensor:
        """The loss, 0, of a batch of fillers without targets, from which every parameter still gets a gradient.

        A head whose loss gathers rows of all workers does so here too, or the others would wait for it.
        """
        return outputs.sum() * 0.0

    @abstractmethod
    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """What a caller gets for each sample: plain JSON values."""

    @abstractmethod
    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """The metrics that the task's spec promises, but for the loss."""

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """More than single numbers, for reports: plain JSON values."""
        return {}

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit what is fitted on validation rows once training is over; the stored buffers it set, by name."""
        return {}


def keep_fusion(outputs: torch.Tensor, fused: Fused) -> torch.Tensor:
    """The same outputs of a head that does not read the fused vector, so that the fusion still gets a gradient."""
    shape = (len(outputs), *([1] * (outputs.ndim - 1)))
    return outputs + fused["vector"].sum(dim=1).reshape(shape).to(outputs.dtype) * 0.0

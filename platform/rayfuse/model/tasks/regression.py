"""A number."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import RegressionTask


class RegressionHead(TaskHead):
    """Outputs (batch, 1) in the target's own unit; Huber loss in deviations of the training targets."""

    explained_as = "value"
    mixes = True

    def __init__(self, options: RegressionTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.mean is not None and options.deviation is not None, (
            "the job's tasks are not fitted yet"
        )
        self.mean = options.mean
        self.deviation = options.deviation
        self.linear = nn.Linear(dim, 1)
        self.outputs = 1
        self.unit = options.mean, options.deviation

    def forward(self, fused: Fused) -> torch.Tensor:
        return self.linear(fused["vector"]).float() * self.deviation + self.mean

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        errors = (outputs[:, 0] - targets) / self.deviation
        return nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Squared difference, in deviations of the training targets."""
        return super().divergence(outputs / self.deviation, target_outputs / self.deviation)

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"value": the number}."""
        return [{"value": value} for value in outputs[:, 0].tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Mean absolute error, root mean squared error, and the explained share of the variance (R²)."""
        targets = targets.astype(np.float64)
        errors = outputs[:, 0] - targets
        spread = float(((targets - targets.mean()) ** 2).sum())
        return {
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt((errors**2).mean())),
            "r2": 1 - float((errors**2).sum()) / spread if spread else 0.0,
        }

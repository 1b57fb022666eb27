"""Regression: one number."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import RegressionTaskConfig


class RegressionHead(TaskHead):
    """Outputs (batch, 1) in the unit of the target, trained with Huber loss on standardized targets."""

    attribution_score_name = "value"
    supports_mixup = True

    def __init__(self, options: RegressionTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.mean is not None and options.std is not None, "the job's tasks are not fitted yet"
        self.mean = options.mean
        self.std = options.std
        self.linear = nn.Linear(dim, 1)
        self.num_outputs = 1
        self.output_scale = options.mean, options.std

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"]).float() * self.std + self.mean

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        errors = (outputs[:, 0] - targets) / self.std
        return nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the squared difference of standardized outputs."""
        return super().divergence(outputs / self.std, target_outputs / self.std)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"value": number} for each sample."""
        return [{"value": value} for value in self.prediction_tensor(outputs).tolist()]

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the value, float32 (batch,)."""
        return outputs[:, 0]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute the mean absolute error, root mean squared error, R² and Pearson's correlation."""
        targets = targets.astype(np.float64)
        values = outputs[:, 0].astype(np.float64)
        errors = values - targets
        spread = float(((targets - targets.mean()) ** 2).sum())
        return {
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt((errors**2).mean())),
            "r2": 1 - float((errors**2).sum()) / spread if spread else 0.0,
            "pearson": _correlation(values - values.mean(), targets - targets.mean()),
        }

    @classmethod
    def response_schema(cls, config: RegressionTaskConfig) -> Schema:
        return object_schema({"value": {"type": "number"}})

    @classmethod
    def with_assumed_statistics(cls, config: RegressionTaskConfig) -> tuple[Any, list[str]]:
        """Assume mean 0 and standard deviation 1."""
        assumed = {"mean": 0.0, "std": 1.0}
        update = {key: value for key, value in assumed.items() if getattr(config, key) is None}
        return config.model_copy(update=update), []


def _correlation(centered: np.ndarray, others: np.ndarray) -> float:
    """Return Pearson's correlation of two centered arrays, float64 (rows,); 0 if either is constant."""
    scale = float(np.linalg.norm(centered) * np.linalg.norm(others))
    return float(centered @ others) / scale if scale else 0.0

"""A task: a quantile of a number."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from rayfuse.modalities import Schema
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import FusedState
from rayfuse.spec.base import SpecModel


class QuantileHead(TaskHead):
    """Quantile regression (Koenker and Bassett, 1978)."""

    class Options(SpecModel):
        quantile: float = Field(0.5, gt=0, lt=1)
        """Fraction of the targets that are below the prediction."""

    attribution_score_name = "quantile"

    def __init__(self, options: Options, dim: int) -> None:
        super().__init__(options, dim)
        self.quantile = options.quantile
        self.linear = nn.Linear(dim, 1)

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        error = targets - outputs[:, 0].float()
        return torch.maximum(self.quantile * error, (self.quantile - 1) * error)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        return [{"value": value} for value in outputs[:, 0].tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {"coverage_error": abs(float((targets <= outputs[:, 0]).mean()) - self.quantile)}

    @classmethod
    def response_schema(cls, config: Options) -> Schema:
        title = f"the {config.quantile:g} quantile"
        return {"type": "object", "properties": {"value": {"type": "number", "title": title}}}

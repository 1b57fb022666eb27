"""Ordinal classification: one of several ordered classes."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema
from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.classification import (
    assume_classes,
    class_prediction_schema,
    confusion_report,
    format_class_prediction,
    mean_or_nan,
    target_log_probabilities,
)
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import OrdinalTaskConfig

_MIN_STEP = 1e-3


class OrdinalHead(CalibratedHead):
    """Logits (batch, classes - 1) of being above each class but the last: one score minus increasing thresholds.

    The proportional odds model (McCullagh, 1980). The steps between thresholds are learned and positive, so that the
    thresholds stay in order.
    """

    attribution_score_name = "probability"
    supports_mixup = True

    def __init__(self, options: OrdinalTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes = options.classes
        self.criterion = ClassCriterion(options, options.class_names)
        self.score = nn.Linear(dim, 1, bias=False)
        self.first_threshold = nn.Parameter(torch.full((1,), -(len(self.classes) - 2) / 2))
        self.threshold_steps = nn.Parameter(
            torch.full((len(self.classes) - 2,), 0.5413)
        )  # softplus of it is 1

    def forward(self, fused: FusedState) -> torch.Tensor:
        steps = nn.functional.softplus(self.threshold_steps) + _MIN_STEP
        thresholds = torch.cat([self.first_threshold, self.first_threshold + steps.cumsum(0)])
        return self.score(fused["vector"]).float() - thresholds

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.multiclass(log_probabilities(outputs.float()), targets.long())

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the Kullback-Leibler divergence of the class probabilities from those of `target_outputs`."""
        found, wanted = log_probabilities(outputs.float()), log_probabilities(target_outputs.float())
        return nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1)

    def attribution_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of the class that `reference_outputs` predicts."""
        chosen = log_probabilities(reference_outputs.float() / self.temperature).argmax(dim=1, keepdim=True)
        return log_probabilities(outputs.float() / self.temperature).exp().gather(1, chosen).squeeze(1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"label": class, "scores": {class: probability}} for each sample."""
        probabilities = log_probabilities(outputs.float() / self.temperature).exp()
        return [format_class_prediction(self.classes, row) for row in probabilities.tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute accuracy, the mean absolute error in classes, quadratically weighted kappa and ECE."""
        predicted, true = self._log_probabilities(outputs).argmax(axis=1), targets.astype(int)
        return {
            "accuracy": float((predicted == true).mean()),
            "mae": float(np.abs(predicted - true).mean()),
            "kappa": quadratic_kappa(predicted, true, len(self.classes)),
            "ece": self.calibration_error(outputs, targets),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return `per_class` metrics, `confusion` (rows are true, columns predicted) and reliability."""
        predicted = self._log_probabilities(outputs).argmax(axis=1)
        found = confusion_report(self.classes, predicted, targets.astype(int))
        return {**found, **self.reliability(outputs, targets)}

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        found = log_probabilities(torch.from_numpy(outputs.astype(np.float64) / temperature)).numpy()
        return -mean_or_nan(target_log_probabilities(found, targets))

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each predicted class, and whether it is correct."""
        probabilities = np.exp(self._log_probabilities(outputs))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)

    @classmethod
    def response_schema(cls, config: OrdinalTaskConfig) -> Schema:
        return class_prediction_schema(config)

    @classmethod
    def with_assumed_statistics(cls, config: OrdinalTaskConfig) -> tuple[Any, list[str]]:
        """Assume 10 classes of equal weight."""
        return assume_classes(config)

    def _log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(outputs.astype(np.float64) / float(self.temperature))
        return log_probabilities(logits).numpy()


def log_probabilities(above: torch.Tensor) -> torch.Tensor:
    """Convert decreasing logits of being above each class but the last to log-probabilities of all classes.

    (batch, classes - 1) → (batch, classes). Uses σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)), which is precise for every
    class.
    """
    log = nn.functional.logsigmoid
    first, last = log(-above[:, :1]), log(above[:, -1:])
    upper, lower = above[:, :-1], above[:, 1:]
    gaps = (upper - lower).clamp(min=1e-6)
    return torch.cat([first, log(upper) + log(-lower) + torch.log(-torch.expm1(-gaps)), last], dim=1)


def quadratic_kappa(predicted: np.ndarray, true: np.ndarray, classes: int) -> float:
    """Compute quadratically weighted kappa (Cohen, 1968) of class indices, int (rows,); 0 if undefined."""
    table = np.zeros((classes, classes))
    np.add.at(table, (true, predicted), 1)
    weights = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(1.0, table.sum())
    expected = float((weights * by_chance).sum())
    return 1 - float((weights * table).sum()) / expected if expected else 0.0

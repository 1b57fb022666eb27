"""Ordinal classification: one of several ordered classes."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.accumulators import ConfusionCounts, precision_recall_f1
from rayfuse.model.tasks.class_scores import format_class_predictions
from rayfuse.model.tasks.classification import (
    ClassAccumulator,
    ClassHead,
    mean_or_nan,
    target_log_probabilities,
)
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import OrdinalTaskConfig

_MIN_STEP = 1e-3


class OrdinalHead(ClassHead):
    """Logits (batch, classes - 1) of being above each class but the last: one score minus increasing thresholds.

    The proportional odds model (McCullagh, 1980). The steps between thresholds are learned and positive, so that the
    thresholds stay in order.
    """

    def __init__(self, options: OrdinalTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.output_size = len(self.classes) - 1
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
        return self.prediction_tensor(outputs).gather(1, chosen).squeeze(1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"label": class, "scores": {class: probability}} for each sample."""
        return format_class_predictions(self.classes, self.prediction_tensor(outputs), self.num_scores)

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class, float32 (batch, classes)."""
        return log_probabilities(outputs.float() / self.temperature).exp()

    def predicted_classes(self, outputs: np.ndarray) -> np.ndarray:
        return self._log_probabilities(outputs).argmax(axis=1)

    def accumulator(self) -> "OrdinalAccumulator":
        return OrdinalAccumulator(len(self.classes))

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        found = log_probabilities(torch.from_numpy(outputs.astype(np.float64) / temperature)).numpy()
        return -mean_or_nan(target_log_probabilities(found, targets))

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each predicted class, and whether it is correct."""
        probabilities = np.exp(self._log_probabilities(outputs))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)

    def _log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(outputs.astype(np.float64) / float(self.temperature))
        return log_probabilities(logits).numpy()


class OrdinalAccumulator(ClassAccumulator[OrdinalHead]):
    """Metrics of an ordinal classification."""

    def metrics(self, head: OrdinalHead) -> dict[str, float]:
        """Compute accuracy, macro F1, the mean absolute error in classes, quadratically weighted kappa and ECE."""
        right, predicted, true = self.confusion.by_class()
        occurs = (true > 0) | (predicted > 0)
        f1 = precision_recall_f1(right[occurs], predicted[occurs], true[occurs])["f1"]
        rows, columns, counts = self.confusion.cells
        total = max(1, counts.sum())
        return {
            "accuracy": float(right.sum() / total),
            "f1_macro": mean_or_nan(f1),
            "mae": float(np.abs(rows - columns) @ counts / total),
            "kappa": quadratic_kappa(self.confusion),
            "ece": self.reliability.error(),
        }


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


def quadratic_kappa(confusion: ConfusionCounts) -> float:
    """Compute quadratically weighted kappa (Cohen, 1968); 0 if undefined."""
    true, predicted, counts = (values.astype(np.float64) for values in confusion.cells)
    # The mean of (true - predicted)² over all pairs of a true and a predicted class, independently of each other.
    expected = true**2 @ counts + predicted**2 @ counts
    expected -= 2 * (true @ counts) * (predicted @ counts) / max(1.0, counts.sum())
    return 1 - float((true - predicted) ** 2 @ counts) / float(expected) if expected > 0 else 0.0

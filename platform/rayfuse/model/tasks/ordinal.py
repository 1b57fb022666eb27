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

_SHARED_WEIGHT = 3.0
"""Factor of the score that all classes share: what separates two classes is learned for the others, too."""


class OrdinalHead(ClassHead):
    """Logits (batch, classes - 1) of being above each class but the last, given at least that class.

    A continuation-ratio model (Fienberg, 1980; CORN, Shi et al., 2021): a score that all classes share, and a smaller one
    of each class. The proportional odds model has the former alone, and cannot learn that other words separate the
    highest two classes than the lowest two.
    """

    def __init__(self, options: OrdinalTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.output_size = len(self.classes) - 1
        self.shared = nn.Linear(dim, 1, bias=False)
        self.by_class = nn.Linear(dim, self.output_size)
        with torch.no_grad():  # all classes are about equally probable, also many
            self.by_class.bias.copy_(torch.arange(self.output_size, 0, -1).log())

    def forward(self, fused: FusedState) -> torch.Tensor:
        vector = fused["vector"]
        return (_SHARED_WEIGHT * self.shared(vector) + self.by_class(vector)).float()

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
    """Convert logits of being above each class but the last, given at least that class, to log-probabilities of all classes.

    (batch, classes - 1) → (batch, classes).
    """
    at_least = nn.functional.logsigmoid(above).cumsum(dim=1)
    not_above = nn.functional.logsigmoid(-above)
    return torch.cat([not_above[:, :1], at_least[:, :-1] + not_above[:, 1:], at_least[:, -1:]], dim=1)


def quadratic_kappa(confusion: ConfusionCounts) -> float:
    """Compute quadratically weighted kappa (Cohen, 1968); 0 if undefined."""
    true, predicted, counts = (values.astype(np.float64) for values in confusion.cells)
    # The mean of (true - predicted)² over all pairs of a true and a predicted class, independently of each other.
    expected = true**2 @ counts + predicted**2 @ counts
    expected -= 2 * (true @ counts) * (predicted @ counts) / max(1.0, counts.sum())
    return 1 - float((true - predicted) ** 2 @ counts) / float(expected) if expected > 0 else 0.0

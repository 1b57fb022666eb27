"""Multi-label classification: any number of several classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.tasks.accumulators import (
    AccumulatedHead,
    Accumulator,
    precision_recall_f1,
    scores_by_class,
)
from rayfuse.model.tasks.average_precision import AveragePrecision
from rayfuse.model.tasks.calibration import CalibratedHead, Reliability
from rayfuse.model.tasks.class_scores import class_scores_schema, label_schema, top_scores
from rayfuse.model.tasks.classification import assume_classes, mean_or_nan
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import MultiHot, MultiLabelTaskConfig, Target

_VOTE_LOGIT = 6.9068
"""Log-odds of 0.999."""


class MultiLabelHead(AccumulatedHead, CalibratedHead):
    """Logits (batch, classes) of independent classes, trained with binary cross-entropy.

    targets: 0 or 1 (batch, classes).
    """

    supports_mixup = True

    def __init__(self, options: MultiLabelTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes, self.threshold = options.classes, options.threshold
        self.num_outputs = self.output_size = len(options.classes)
        self.num_scores = options.num_scores
        self.criterion = ClassCriterion(options, options.class_names)
        self.linear = nn.Linear(dim, len(options.classes))

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.binary(outputs, targets).mean(dim=1)

    def combine_logits(self, outputs: torch.Tensor, decision_weights: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of the decisions' mean probabilities."""
        return super().combine_logits(outputs.float().sigmoid(), decision_weights).logit(eps=1e-6)

    def hard_votes(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of a probability of 0.999 or 0.001 for each class."""
        return torch.where(outputs >= 0, _VOTE_LOGIT, -_VOTE_LOGIT).to(outputs.dtype)

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the Kullback-Leibler divergence of each class's probability, averaged over classes."""
        log = nn.functional.logsigmoid
        found, wanted = outputs.float(), target_outputs.float()
        yes, no = log(wanted) - log(found), log(-wanted) - log(-found)
        return (wanted.sigmoid() * yes + (-wanted).sigmoid() * no).mean(dim=1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"labels": classes at or above the threshold, "scores": {class: probability}} for each sample."""
        return [self._format(row) for row in self.prediction_tensor(outputs)]

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class, float32 (batch, classes)."""
        return (outputs.float() / self.temperature).sigmoid()

    def _format(self, probabilities: torch.Tensor) -> dict[str, Any]:
        present = (probabilities >= self.threshold).nonzero()[:, 0].tolist()
        return {
            "labels": [self.classes[i] for i in present],
            "scores": top_scores(self.classes, probabilities, max(self.num_scores, len(present))),
        }

    def accumulator(self) -> "MultiLabelAccumulator":
        return MultiLabelAccumulator(len(self.classes))

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return binary_negative_log_likelihood(outputs / temperature, targets)

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of every class of every row, and whether the row has it."""
        return self._probabilities(outputs).ravel(), (targets > 0.5).ravel()

    @classmethod
    def response_schema(cls, config: MultiLabelTaskConfig) -> Schema:
        labels = {"type": "array", "items": label_schema(config.classes or ()), "uniqueItems": True}
        return object_schema({"labels": labels, "scores": class_scores_schema(config)})

    @classmethod
    def with_assumed_statistics(cls, config: MultiLabelTaskConfig) -> tuple[Any, list[str]]:
        """Assume 10 classes of equal weight."""
        return assume_classes(config)

    @classmethod
    def dummy_target(cls, config: MultiLabelTaskConfig, inputs: Mapping[str, Input]) -> Target:
        return MultiHot(len(config.classes or ()), ())

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        return ", ".join(map(str, prediction["labels"])) or "none"

    def predicted_classes(self, outputs: np.ndarray) -> np.ndarray:
        """Return which classes are predicted, bool (batch, classes)."""
        return self._probabilities(outputs) >= self.threshold

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return sigmoid(outputs / float(self.temperature))


class MultiLabelAccumulator(Accumulator[MultiLabelHead]):
    """Metrics of a multi-label classification, in memory that hardly depends on the number of rows."""

    def __init__(self, num_classes: int) -> None:
        self._exact_matches = self._rows = 0
        self._counts = np.zeros((3, num_classes), dtype=np.int64)
        self._precision = AveragePrecision(num_classes)
        self._reliability = Reliability()

    def update(self, head: MultiLabelHead, outputs: np.ndarray, targets: np.ndarray) -> None:
        predicted, true = head.predicted_classes(outputs), targets > 0.5
        self._rows += len(outputs)
        self._exact_matches += int((predicted == true).all(axis=1).sum())
        self._counts += np.stack([part.sum(axis=0) for part in (predicted & true, predicted, true)])
        self._precision.add(outputs, true)
        self._reliability.merge(head.reliability(outputs, targets))

    def merge(self, other: "MultiLabelAccumulator") -> None:
        self._rows += other._rows
        self._exact_matches += other._exact_matches
        self._counts += other._counts
        self._precision.merge(other._precision)
        self._reliability.merge(other._reliability)

    def metrics(self, head: MultiLabelHead) -> dict[str, float]:
        """Compute the exact match ratio, averaged precision, recall and F1, mean average precision and ECE.

        Macro averages and `map` are over the classes that occur.
        """
        occurring = self._counts[:, self._counts[2] > 0]
        micro, macro = precision_recall_f1(*self._counts.sum(axis=1)), precision_recall_f1(*occurring)
        return {
            "exact_match": self._exact_matches / max(1, self._rows),
            **{f"{name}_micro": float(value) for name, value in micro.items()},
            **{f"{name}_macro": _mean_or_zero(values) for name, values in macro.items()},
            "map": _mean_or_zero(self._precision.by_class()[self._counts[2] > 0]),
            "ece": self._reliability.error(),
        }

    def details(self, head: MultiLabelHead) -> dict[str, Any]:
        """Return `per_class` precision, recall, F1 and support, and reliability."""
        names = [str(label) for label in head.classes]
        return {
            "per_class": scores_by_class(names, *self._counts),
            **head.calibration_details(self._reliability),
        }


def _mean_or_zero(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute the sigmoid in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def binary_negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Compute the mean negative log-likelihood of binary targets."""
    signed = np.where(targets > 0.5, logits, -logits).astype(np.float64)
    return mean_or_nan(np.logaddexp(0, -signed))

"""Multi-label classification: any number of several classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.classification import assume_classes, class_scores_schema, mean_or_nan
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import MultiLabelTaskConfig, Target

_VOTE_LOGIT = 6.9068
"""Log-odds of 0.999."""


class MultiLabelHead(CalibratedHead):
    """Logits (batch, classes) of independent classes, trained with binary cross-entropy.

    targets: 0 or 1 (batch, classes).
    """

    supports_mixup = True

    def __init__(self, options: MultiLabelTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes, self.threshold = options.classes, options.threshold
        self.num_outputs = len(options.classes)
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
        names = [str(name) for name in self.classes]
        return [
            {
                "labels": [name for name, p in zip(self.classes, row, strict=True) if p >= self.threshold],
                "scores": dict(zip(names, row, strict=True)),
            }
            for row in (outputs.float() / self.temperature).sigmoid().tolist()
        ]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute the exact match ratio, averaged precision, recall and F1, mean average precision and ECE.

        Macro averages and `map` are over the classes that occur.
        """
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support

        predicted, true = self._probabilities(outputs) >= self.threshold, targets > 0.5
        found = {"exact_match": float((predicted == true).all(axis=1).mean())}
        occurring = np.flatnonzero(true.any(axis=0))
        for average in ("micro", "macro"):
            labels = None if average == "micro" else occurring
            values = (
                precision_recall_fscore_support(
                    true, predicted, labels=labels, average=average, zero_division=0
                )
                if len(occurring)
                else (0.0, 0.0, 0.0)
            )
            found |= {
                f"{name}_{average}": float(v)
                for name, v in zip(("precision", "recall", "f1"), values, strict=False)
            }
        precisions = [average_precision_score(true[:, i], outputs[:, i]) for i in occurring]
        return {
            **found,
            "map": float(np.mean(precisions)) if precisions else 0.0,
            "ece": self.calibration_error(outputs, targets),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return `per_class` precision, recall, F1 and support, and reliability."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted, true = self._probabilities(outputs) >= self.threshold, targets > 0.5
        columns = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
        names = ("precision", "recall", "f1", "support")
        per_class = {
            str(label): {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
            for i, label in enumerate(self.classes)
        }
        return {"per_class": per_class, **self.reliability(outputs, targets)}

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return binary_negative_log_likelihood(outputs / temperature, targets)

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of every class of every row, and whether the row has it."""
        return self._probabilities(outputs).ravel(), (targets > 0.5).ravel()

    @classmethod
    def response_schema(cls, config: MultiLabelTaskConfig) -> Schema:
        labels = {"type": "array", "items": {"enum": config.classes or []}, "uniqueItems": True}
        return object_schema({"labels": labels, "scores": class_scores_schema(config)})

    @classmethod
    def with_assumed_statistics(cls, config: MultiLabelTaskConfig) -> tuple[Any, list[str]]:
        """Assume 10 classes of equal weight."""
        return assume_classes(config)

    @classmethod
    def dummy_target(cls, config: MultiLabelTaskConfig, inputs: Mapping[str, Input]) -> Target:
        return [0.0] * len(config.classes or ())

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        return ", ".join(map(str, prediction["labels"])) or "none"

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return sigmoid(outputs / float(self.temperature))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute the sigmoid in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def binary_negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Compute the mean negative log-likelihood of binary targets."""
    signed = np.where(targets > 0.5, logits, -logits).astype(np.float64)
    return mean_or_nan(np.logaddexp(0, -signed))

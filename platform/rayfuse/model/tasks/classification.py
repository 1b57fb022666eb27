"""Classification: one of several classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import ClassificationTaskConfig
from rayfuse.spec.tasks.classes import BaseClassesTaskConfig, ClassLossConfig

_VOTE_SMOOTHING = 1e-3
"""Fraction of a vote that is distributed by probability, which breaks ties."""
_NUM_ASSUMED_CLASSES = 10
PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
"""JSON Schema of a probability."""


class ClassificationHead(CalibratedHead):
    """Logits (batch, classes), trained with softmax cross-entropy."""

    attribution_score_name = "probability"
    supports_mixup = True

    def __init__(self, options: ClassificationTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes = options.classes
        self.num_outputs = len(options.classes)
        self.criterion = ClassCriterion(options, options.class_names)
        self.linear = nn.Linear(dim, len(options.classes))

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.multiclass(outputs, targets.long())

    def combine_logits(self, outputs: torch.Tensor, decision_weights: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the decisions' mean probabilities."""
        counts = decision_weights > 0
        weights = torch.where(counts, decision_weights, 1.0).log().masked_fill(~counts, float("-inf"))
        return (outputs.log_softmax(dim=2) + weights.unsqueeze(2)).logsumexp(dim=1)

    def hard_votes(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities with 0.999 for the most probable class, and 0.001 distributed by probability."""
        chosen = nn.functional.one_hot(outputs.argmax(dim=-1), outputs.shape[-1])
        shared = chosen * (1 - _VOTE_SMOOTHING) + outputs.softmax(dim=-1) * _VOTE_SMOOTHING
        return shared.clamp(min=torch.finfo(shared.dtype).tiny).log()

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the Kullback-Leibler divergence of the class probabilities from those of `target_outputs`."""
        found, wanted = outputs.float().log_softmax(dim=1), target_outputs.float().log_softmax(dim=1)
        return nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"label": class, "scores": {class: probability}} for each sample."""
        probabilities = (outputs.float() / self.temperature).softmax(dim=1)
        return [format_class_prediction(self.classes, row) for row in probabilities.tolist()]

    def attribution_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of the class that `reference_outputs` predicts."""
        return (
            (outputs.float() / self.temperature)
            .softmax(dim=1)
            .gather(1, reference_outputs.argmax(dim=1, keepdim=True))
            .squeeze(1)
        )

    def saliency_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of that class."""
        chosen = reference_outputs.argmax(dim=1, keepdim=True)
        scaled = outputs.float() / self.temperature
        return scaled.gather(1, chosen).squeeze(1) - scaled.scatter(1, chosen, -torch.inf).logsumexp(dim=1)

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute accuracy, averaged precision, recall and F1, and the expected calibration error."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted, true = outputs.argmax(axis=1), targets.astype(int)
        found = {"accuracy": float((predicted == true).mean())}
        for average in ("micro", "macro", "weighted"):
            values = precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
            found |= {
                f"{name}_{average}": float(v)
                for name, v in zip(("precision", "recall", "f1"), values, strict=False)
            }
        return {**found, "ece": self.calibration_error(outputs, targets)}

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return `per_class` metrics, `confusion` (rows are true, columns predicted) and reliability."""
        found = confusion_report(self.classes, outputs.argmax(axis=1), targets.astype(int))
        return {**found, **self.reliability(outputs, targets)}

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return -mean_or_nan(target_log_probabilities(log_softmax(outputs / temperature), targets))

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each predicted class, and whether it is correct."""
        probabilities = np.exp(log_softmax(outputs / float(self.temperature)))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)

    @classmethod
    def response_schema(cls, config: ClassificationTaskConfig) -> Schema:
        return class_prediction_schema(config)

    @classmethod
    def with_assumed_statistics(cls, config: ClassificationTaskConfig) -> tuple[Any, list[str]]:
        """Assume 10 classes of equal weight."""
        return assume_classes(config)


def class_prediction_schema(config: BaseClassesTaskConfig) -> Schema:
    """Return the JSON Schema of `format_class_prediction`."""
    return object_schema({"label": {"enum": config.classes or []}, "scores": class_scores_schema(config)})


def class_scores_schema(config: BaseClassesTaskConfig) -> Schema:
    """Return the JSON Schema of {class: probability}."""
    return {"type": "object", "properties": dict.fromkeys(config.class_names, PROBABILITY)}


def assume_classes(config: BaseClassesTaskConfig) -> tuple[Any, list[str]]:
    """Return a task over classes with 10 assumed classes if it has none, without balanced weights."""
    update: dict[str, Any] = {}
    if config.classes is None:
        update["classes"] = [str(number) for number in range(_NUM_ASSUMED_CLASSES)]
    notes = [f"{len(update['classes'])} classes"] if update else []
    return config.model_copy(update={**update, **unweighted(config)}), notes


def unweighted(config: ClassLossConfig) -> Mapping[str, Any]:
    """Return the update of a task that replaces balanced class weights, which training rows determine, with 1."""
    return {"class_weights": {}} if config.class_weights == "balanced" else {}


def format_class_prediction(classes: Sequence[Any], probabilities: list[float]) -> dict[str, Any]:
    """Return {"label": most probable class, "scores": {class: probability}}."""
    return {
        "label": classes[max(range(len(probabilities)), key=probabilities.__getitem__)],
        "scores": dict(zip(map(str, classes), probabilities, strict=True)),
    }


def confusion_report(classes: Sequence[Any], predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Return `classes`, `per_class` and `confusion` of predicted and true class indices, int (rows,)."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = list(range(len(classes)))
    columns = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    per_class = {
        str(label): {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
        for i, label in enumerate(classes)
    }
    return {
        "classes": [str(label) for label in classes],
        "per_class": per_class,
        "confusion": confusion_matrix(true, predicted, labels=labels).tolist(),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute log-softmax over the last axis in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def target_log_probabilities(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the log-probability of each row's true class, (rows,)."""
    return np.take_along_axis(log_probabilities, targets.astype(int)[:, None], axis=1)[:, 0]


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean; NaN, without a warning, of no values."""
    return float(values.mean()) if values.size else float("nan")

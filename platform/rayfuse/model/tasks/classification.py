"""Classification: one of several classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema
from rayfuse.model.tasks.accumulators import (
    AccumulatedHead,
    Accumulator,
    ConfusionCounts,
    precision_recall_f1,
    scores_by_class,
)
from rayfuse.model.tasks.calibration import CalibratedHead, Reliability
from rayfuse.model.tasks.class_scores import class_prediction_schema, format_class_predictions
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import ClassificationTaskConfig
from rayfuse.spec.tasks.classes import BaseClassesTaskConfig, ClassLossConfig

_VOTE_SMOOTHING = 1e-3
"""Fraction of a vote that is distributed by probability, which breaks ties."""
_NUM_ASSUMED_CLASSES = 10


class ClassHead(AccumulatedHead, CalibratedHead, ABC):
    """A head that predicts one of several classes."""

    attribution_score_name = "probability"
    supports_mixup = True

    def __init__(self, options: BaseClassesTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes, self.num_scores = options.classes, options.num_scores
        self.criterion = ClassCriterion(options, options.class_names)

    @abstractmethod
    def predicted_classes(self, outputs: np.ndarray) -> np.ndarray:
        """Return the index of each sample's predicted class, int (batch,)."""

    @classmethod
    def response_schema(cls, config: BaseClassesTaskConfig) -> Schema:
        return class_prediction_schema(config)

    @classmethod
    def with_assumed_statistics(cls, config: BaseClassesTaskConfig) -> tuple[Any, list[str]]:
        """Assume 10 classes of equal weight."""
        return assume_classes(config)


HeadT = TypeVar("HeadT", bound=ClassHead)


class ClassificationHead(ClassHead):
    """Logits (batch, classes), trained with softmax cross-entropy."""

    def __init__(self, options: ClassificationTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.num_outputs = self.output_size = len(self.classes)
        self.linear = nn.Linear(dim, len(self.classes))

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
        return format_class_predictions(self.classes, self.prediction_tensor(outputs), self.num_scores)

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class, float32 (batch, classes)."""
        return (outputs.float() / self.temperature).softmax(dim=1)

    def attribution_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor:
        """Return the probability of the class that `reference_outputs` predicts."""
        chosen = reference_outputs.argmax(dim=1, keepdim=True)
        return self.prediction_tensor(outputs).gather(1, chosen).squeeze(1)

    def saliency_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of that class."""
        chosen = reference_outputs.argmax(dim=1, keepdim=True)
        scaled = outputs.float() / self.temperature
        return scaled.gather(1, chosen).squeeze(1) - scaled.scatter(1, chosen, -torch.inf).logsumexp(dim=1)

    def predicted_classes(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.argmax(axis=1)

    def accumulator(self) -> "ClassificationAccumulator":
        return ClassificationAccumulator(len(self.classes))

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return -mean_or_nan(target_log_probabilities(log_softmax(outputs / temperature), targets))

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each predicted class, and whether it is correct."""
        probabilities = np.exp(log_softmax(outputs / float(self.temperature)))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)


class ClassAccumulator(Accumulator[HeadT]):
    """Confusion counts and reliability of predictions of one class, in memory that depends on neither rows nor scores."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = ConfusionCounts(num_classes)
        self.reliability = Reliability()

    def update(self, head: HeadT, outputs: np.ndarray, targets: np.ndarray) -> None:
        self.confusion.add(targets.astype(int), head.predicted_classes(outputs))
        self.reliability.merge(head.reliability(outputs, targets))

    def merge(self, other: Self) -> None:
        self.confusion.merge(other.confusion)
        self.reliability.merge(other.reliability)

    def details(self, head: HeadT) -> dict[str, Any]:
        """Return `classes`, `per_class` metrics, `confusion` and reliability.

        `confusion` lists [true class, predicted class, number of rows] of the pairs that occur, with positions in `classes`.
        """
        names = [str(label) for label in head.classes]
        return {
            "classes": names,
            "per_class": scores_by_class(names, *self.confusion.by_class()),
            "confusion": self.confusion.triples(),
            **head.calibration_details(self.reliability),
        }


class ClassificationAccumulator(ClassAccumulator[ClassificationHead]):
    """Metrics of a classification."""

    def metrics(self, head: ClassificationHead) -> dict[str, float]:
        """Compute accuracy, averaged precision, recall and F1, and the expected calibration error.

        Averages are over the classes that occur or are predicted.
        """
        right, predicted, true = self.confusion.by_class()
        occurs = (true > 0) | (predicted > 0)
        columns = precision_recall_f1(right[occurs], predicted[occurs], true[occurs])
        accuracy = float(right.sum() / max(1, true.sum()))
        found = {"accuracy": accuracy}
        found |= {f"{name}_micro": accuracy for name in columns}  # every row has one class
        found |= {f"{name}_macro": mean_or_nan(values) for name, values in columns.items()}
        weights = true[occurs] / max(1, true.sum())
        found |= {f"{name}_weighted": float(values @ weights) for name, values in columns.items()}
        return {**found, "ece": self.reliability.error()}


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

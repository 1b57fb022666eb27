"""One of several classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import ClassificationTask

_UNDECIDED = 1e-3
"""Share of a vote that goes by probability, which decides ties."""


class ClassificationHead(CalibratedHead):
    """Logits (batch, classes); softmax cross-entropy."""

    explained_as = "probability"
    mixes = True

    def __init__(self, options: ClassificationTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes = options.classes
        self.outputs = len(options.classes)
        self.criterion = ClassCriterion(options, options.names)
        self.linear = nn.Linear(dim, len(options.classes))

    def forward(self, fused: Fused) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.multiclass(outputs, targets.long())

    def blend(self, outputs: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """The logarithm of the opinions' mean probabilities."""
        counts = trust > 0
        weights = torch.where(counts, trust, 1.0).log().masked_fill(~counts, float("-inf"))
        return (outputs.log_softmax(dim=2) + weights.unsqueeze(2)).logsumexp(dim=1)

    def ballots(self, outputs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities: all but 0.001 for the most probable class, and that shared out by probability."""
        chosen = nn.functional.one_hot(outputs.argmax(dim=-1), outputs.shape[-1])
        shared = chosen * (1 - _UNDECIDED) + outputs.softmax(dim=-1) * _UNDECIDED
        return shared.clamp(min=torch.finfo(shared.dtype).tiny).log()

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the classes' probabilities from those of `target_outputs`."""
        found, wanted = outputs.float().log_softmax(dim=1), target_outputs.float().log_softmax(dim=1)
        return nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1)

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"label": the class, "scores": {class: probability}}."""
        probabilities = (outputs.float() / self.temperature).softmax(dim=1)
        return [choice(self.classes, row) for row in probabilities.tolist()]

    def explained(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """The probability of the class that `answered` answers."""
        return (
            (outputs.float() / self.temperature)
            .softmax(dim=1)
            .gather(1, answered.argmax(dim=1, keepdim=True))
            .squeeze(1)
        )

    def differentiated(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """The log-odds of that class."""
        chosen = answered.argmax(dim=1, keepdim=True)
        scaled = outputs.float() / self.temperature
        return scaled.gather(1, chosen).squeeze(1) - scaled.scatter(1, chosen, -torch.inf).logsumexp(dim=1)

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy; precision, recall and F1 averaged over the classes that occur; the expected calibration error."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted, true = outputs.argmax(axis=1), targets.astype(int)
        found = {"accuracy": float((predicted == true).mean())}
        for average in ("micro", "macro", "weighted"):
            values = precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
            found |= {
                f"{name}_{average}": float(v)
                for name, v in zip(("precision", "recall", "f1"), values, strict=False)
            }
        return {**found, "ece": self.error(outputs, targets)}

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class` precision, recall, F1 and support; `confusion`: rows are true, columns predicted; reliability."""
        found = confusion(self.classes, outputs.argmax(axis=1), targets.astype(int))
        return {**found, **self.reliability(outputs, targets)}

    def likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return -mean(true_log_probabilities(log_softmax(outputs / temperature), targets))

    def judged(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each answer, and whether it was right."""
        probabilities = np.exp(log_softmax(outputs / float(self.temperature)))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)


def choice(classes: Sequence[Any], probabilities: list[float]) -> dict[str, Any]:
    """{"label": the likeliest class, "scores": {class: probability}}."""
    return {
        "label": classes[max(range(len(probabilities)), key=probabilities.__getitem__)],
        "scores": dict(zip(map(str, classes), probabilities, strict=True)),
    }


def confusion(classes: Sequence[Any], predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """`classes`, `per_class` and `confusion` of predicted and true indices, int (rows,)."""
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
    """Of the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def true_log_probabilities(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """That of each row's true class, (rows,)."""
    return np.take_along_axis(log_probabilities, targets.astype(int)[:, None], axis=1)[:, 0]


def mean(values: np.ndarray) -> float:
    """NaN, without a warning, where there are none."""
    return float(values.mean()) if values.size else float("nan")

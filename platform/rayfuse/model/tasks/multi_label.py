"""Any number of several classes."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.classification import mean
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import MultiLabelTask

_DECIDED = 6.9068
"""Log-odds of 0.999."""


class MultiLabelHead(CalibratedHead):
    """Logits (batch, classes), each yes or no by itself; binary cross-entropy. targets: 0 or 1 (batch, classes)."""

    mixes = True

    def __init__(self, options: MultiLabelTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes, self.threshold = options.classes, options.threshold
        self.outputs = len(options.classes)
        self.criterion = ClassCriterion(options, options.names)
        self.linear = nn.Linear(dim, len(options.classes))

    def forward(self, fused: Fused) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.binary(outputs, targets).mean(dim=1)

    def blend(self, outputs: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """The log-odds of the opinions' mean probabilities."""
        return super().blend(outputs.float().sigmoid(), trust).logit(eps=1e-6)

    def ballots(self, outputs: torch.Tensor) -> torch.Tensor:
        """Log-odds of all but 0.001 for what is more probable."""
        return torch.where(outputs >= 0, _DECIDED, -_DECIDED).to(outputs.dtype)

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of each class's yes and no, the mean over classes."""
        log = nn.functional.logsigmoid
        found, wanted = outputs.float(), target_outputs.float()
        yes, no = log(wanted) - log(found), log(-wanted) - log(-found)
        return (wanted.sigmoid() * yes + (-wanted).sigmoid() * no).mean(dim=1)

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"labels": the classes from the threshold on, "scores": {class: probability}}."""
        names = [str(name) for name in self.classes]
        return [
            {
                "labels": [name for name, p in zip(self.classes, row, strict=True) if p >= self.threshold],
                "scores": dict(zip(names, row, strict=True)),
            }
            for row in (outputs.float() / self.temperature).sigmoid().tolist()
        ]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Share of rows with exactly the right labels; precision, recall and F1; mean average precision; ECE.

        Macro averages and `map` are over the classes that occur.
        """
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support

        predicted, true = self._probabilities(outputs) >= self.threshold, targets > 0.5
        found = {"exact": float((predicted == true).all(axis=1).mean())}
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
            "ece": self.error(outputs, targets),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class` precision, recall, F1 and support; reliability."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted, true = self._probabilities(outputs) >= self.threshold, targets > 0.5
        columns = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
        names = ("precision", "recall", "f1", "support")
        per_class = {
            str(label): {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
            for i, label in enumerate(self.classes)
        }
        return {"per_class": per_class, **self.reliability(outputs, targets)}

    def likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        return binary_likelihood(outputs / temperature, targets)

    def judged(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of every class in every row, and whether the row has it."""
        return self._probabilities(outputs).ravel(), (targets > 0.5).ravel()

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return sigmoid(outputs / float(self.temperature))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def binary_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log-likelihood of yes (1) and no (0)."""
    signed = np.where(targets > 0.5, logits, -logits).astype(np.float64)
    return mean(np.logaddexp(0, -signed))

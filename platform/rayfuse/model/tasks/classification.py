"""One of several classes."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import ClassificationTask

_UNDECIDED = 1e-3
"""Share of a vote that goes by probability, which decides ties."""


class ClassificationHead(TaskHead):
    """Logits (batch, classes); softmax cross-entropy."""

    explained_as = "probability"
    mixes = True

    def __init__(self, options: ClassificationTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes = options.classes
        self.outputs = len(options.classes)
        self.linear = nn.Linear(dim, len(options.classes))

    def forward(self, fused: Fused) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.float(), targets.long(), reduction="none")

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
        names = [str(name) for name in self.classes]
        return [
            {
                "label": self.classes[max(range(len(row)), key=row.__getitem__)],
                "scores": dict(zip(names, row, strict=True)),
            }
            for row in outputs.float().softmax(dim=1).tolist()
        ]

    def explained(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """The probability of the class that `answered` answers."""
        return outputs.float().softmax(dim=1).gather(1, answered.argmax(dim=1, keepdim=True)).squeeze(1)

    def differentiated(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """The log-odds of that class."""
        chosen = answered.argmax(dim=1, keepdim=True)
        others = outputs.float().scatter(1, chosen, -torch.inf).logsumexp(dim=1)
        return outputs.float().gather(1, chosen).squeeze(1) - others

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy, and precision, recall and F1 averaged over the classes that occur."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted, true = outputs.argmax(axis=1), targets.astype(int)
        found = {"accuracy": float((predicted == true).mean())}
        for average in ("micro", "macro", "weighted"):
            values = precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
            found |= {
                f"{name}_{average}": float(v)
                for name, v in zip(("precision", "recall", "f1"), values, strict=False)
            }
        return found

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class` precision, recall, F1 and support; `confusion`: rows are true, columns predicted."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        predicted, true = outputs.argmax(axis=1), targets.astype(int)
        labels = list(range(len(self.classes)))
        columns = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
        names = ("precision", "recall", "f1", "support")
        per_class = {
            str(label): {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
            for i, label in enumerate(self.classes)
        }
        return {
            "classes": [str(label) for label in self.classes],
            "per_class": per_class,
            "confusion": confusion_matrix(true, predicted, labels=labels).tolist(),
        }

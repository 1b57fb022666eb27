"""One of several classes that have an order."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.classification import choice, confusion, mean, true_log_probabilities
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import OrdinalTask

_LEAST_STEP = 1e-3


class OrdinalHead(CalibratedHead):
    """Logits (batch, classes - 1) of being above each class but the last: one score against rising thresholds.

    The proportional odds model (McCullagh, 1980). Thresholds are kept in order by learning the steps between them.
    """

    explained_as = "probability"
    mixes = True

    def __init__(self, options: OrdinalTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.classes is not None, "the job's tasks are not fitted yet"
        self.classes = options.classes
        self.criterion = ClassCriterion(options, options.names)
        self.score = nn.Linear(dim, 1, bias=False)
        self.first = nn.Parameter(torch.full((1,), -(len(self.classes) - 2) / 2))
        self.steps = nn.Parameter(torch.full((len(self.classes) - 2,), 0.5413))  # softplus of it is 1

    def forward(self, fused: Fused) -> torch.Tensor:
        steps = nn.functional.softplus(self.steps) + _LEAST_STEP
        thresholds = torch.cat([self.first, self.first + steps.cumsum(0)])
        return self.score(fused["vector"]).float() - thresholds

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.multiclass(log_probabilities(outputs.float()), targets.long())

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the classes' probabilities from those of `target_outputs`."""
        found, wanted = log_probabilities(outputs.float()), log_probabilities(target_outputs.float())
        return nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1)

    def explained(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        """The probability of the class that `answered` answers."""
        chosen = log_probabilities(answered.float() / self.temperature).argmax(dim=1, keepdim=True)
        return log_probabilities(outputs.float() / self.temperature).exp().gather(1, chosen).squeeze(1)

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"label": the class, "scores": {class: probability}}."""
        probabilities = log_probabilities(outputs.float() / self.temperature).exp()
        return [choice(self.classes, row) for row in probabilities.tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy; `steps`, by how many classes answers are off on average; quadratically weighted kappa; ECE."""
        predicted, true = self._log_probabilities(outputs).argmax(axis=1), targets.astype(int)
        return {
            "accuracy": float((predicted == true).mean()),
            "steps": float(np.abs(predicted - true).mean()),
            "kappa": quadratic_kappa(predicted, true, len(self.classes)),
            "ece": self.error(outputs, targets),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class`, `confusion` (rows are true, columns predicted), and reliability."""
        predicted = self._log_probabilities(outputs).argmax(axis=1)
        found = confusion(self.classes, predicted, targets.astype(int))
        return {**found, **self.reliability(outputs, targets)}

    def likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        found = log_probabilities(torch.from_numpy(outputs.astype(np.float64) / temperature)).numpy()
        return -mean(true_log_probabilities(found, targets))

    def judged(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each answer, and whether it was right."""
        probabilities = np.exp(self._log_probabilities(outputs))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets.astype(int)

    def _log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(outputs.astype(np.float64) / float(self.temperature))
        return log_probabilities(logits).numpy()


def log_probabilities(above: torch.Tensor) -> torch.Tensor:
    """Falling logits of being above each class but the last, (batch, classes - 1) → log-probabilities of all classes.

    σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)) keeps every class's precision.
    """
    log = nn.functional.logsigmoid
    first, last = log(-above[:, :1]), log(above[:, -1:])
    upper, lower = above[:, :-1], above[:, 1:]
    gaps = (upper - lower).clamp(min=1e-6)
    return torch.cat([first, log(upper) + log(-lower) + torch.log(-torch.expm1(-gaps)), last], dim=1)


def quadratic_kappa(predicted: np.ndarray, true: np.ndarray, classes: int) -> float:
    """Agreement beyond chance, mistakes weighing by the square of their distance (Cohen, 1968); 0 if undefined."""
    table = np.zeros((classes, classes))
    np.add.at(table, (true, predicted), 1)
    weights = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(1.0, table.sum())
    expected = float((weights * by_chance).sum())
    return 1 - float((weights * table).sum()) / expected if expected else 0.0

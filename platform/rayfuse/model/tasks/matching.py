"""Whether two inputs belong together."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.gathering import gather_rows
from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.multi_label import binary_likelihood, sigmoid
from rayfuse.model.tasks.pairs import PairHead, PairVectors, unpacked, unpacked_arrays
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import MatchingTask

_FIRST_SCALE = 10.0


class MatchingHead(PairHead, CalibratedHead):
    """The logit of a pair is its cosine times a learned scale, plus a learned bias (Zhai et al., 2023).

    Outputs: see PairHead. targets: 1 for a true pair, 0 for a false one (batch,). Without a label column every row is
    true, and the first input of each is held against the second of all other rows of the batch, over all workers;
    a true pair weighs as much as all of these together, so that a score of 0.5 is as good as chance.
    """

    target_width = 1

    def __init__(self, options: MatchingTask, dim: int) -> None:
        super().__init__(options, dim)
        self.labelled = options.column is not None
        self.vectors = PairVectors(options, dim)
        self.log_scale = nn.Parameter(torch.full((1,), _FIRST_SCALE).log())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, fused: Fused) -> torch.Tensor:
        vectors, there = self.vectors(fused)
        scaled = vectors[:, 0] * self.log_scale.exp()
        bias = self.bias.expand(len(vectors), 1)
        first, second = (
            torch.cat([scaled, bias], dim=1),
            torch.cat([vectors[:, 1], torch.ones_like(bias)], dim=1),
        )
        return self.packed(torch.stack([first, second], dim=1), there, fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        first, second, there = unpacked(outputs)
        own = (first * second).sum(dim=1)
        if self.labelled:
            wanted = targets.nan_to_num()
            loss = nn.functional.binary_cross_entropy_with_logits(own, wanted, reduction="none")
            return loss * (there & ~targets.isnan())
        rows, start = gather_rows(outputs.float()) if self.training else (outputs, 0)
        _, others, whole = unpacked(rows)
        places = torch.arange(len(first), device=own.device) + start
        negatives = whole.unsqueeze(0) & (torch.arange(len(rows), device=own.device) != places.unsqueeze(1))
        against = nn.functional.softplus(first @ others.T) * negatives
        loss = nn.functional.softplus(-own) + against.sum(dim=1) / negatives.sum(dim=1).clamp(min=1)
        return loss * there

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"match": true or false, "score": probability}; null for both where an input is absent."""
        first, second, there = unpacked(outputs)
        scores = ((first * second).sum(dim=1) / self.temperature).sigmoid()
        return [
            {"match": score >= 0.5, "score": score} if whole else {"match": None, "score": None}
            for score, whole in zip(scores.tolist(), there.tolist(), strict=True)
        ]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy, precision, recall and F1 of true pairs, area under the ROC curve (0.5 if undefined), and ECE.

        Over the rows that have both inputs; without a label column, as many pairs of different rows are added.
        """
        from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

        logits, true = self._pairs(outputs, targets)
        predicted = logits >= 0
        scores = (0.0, 0.0, 0.0)
        if len(true):
            scores = precision_recall_fscore_support(true, predicted, average="binary", zero_division=0)[:3]
        return {
            "accuracy": float((predicted == true).mean()) if len(true) else 0.0,
            **{name: float(v) for name, v in zip(("precision", "recall", "f1"), scores, strict=True)},
            "auc": float(roc_auc_score(true, logits)) if len(np.unique(true)) == 2 else 0.5,
            "ece": self.error(outputs, targets),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """How many pairs were judged, and reliability."""
        logits, true = self._pairs(outputs, targets)
        counts = {"pairs": len(logits), "true_pairs": int(true.sum())}
        return {**counts, **self.reliability(outputs, targets)}

    def likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        logits, true = self._pairs(outputs, targets)
        return binary_likelihood(logits / temperature, true)

    def judged(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each pair, and whether it is true."""
        logits, true = self._pairs(outputs, targets)
        return sigmoid(logits / float(self.temperature)), true

    def _pairs(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the pairs to judge, and which are true.

        A false pair joins a row's first input with the second of the row half of all rows further on.
        """
        first, second, there = unpacked_arrays(outputs)
        first, second, true = first[there], second[there], targets[there] > 0.5
        logits = (first * second).sum(axis=1)
        if self.labelled or len(first) < 2:
            return logits, true
        false = (first * np.roll(second, len(second) // 2, axis=0)).sum(axis=1)
        return np.concatenate([logits, false]), np.concatenate([true, np.zeros(len(false), dtype=bool)])

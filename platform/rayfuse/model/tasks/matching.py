"""Matching: whether two inputs belong together."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.all_gather import all_gather_with_grad
from rayfuse.model.tasks.calibration import CalibratedHead
from rayfuse.model.tasks.class_scores import PROBABILITY
from rayfuse.model.tasks.multi_label import binary_negative_log_likelihood, sigmoid
from rayfuse.model.tasks.pairs import PairEmbeddings, PairHead, unpack_output_arrays, unpack_outputs
from rayfuse.model.tokens import FusedState
from rayfuse.spec.tasks import MatchingTaskConfig

_INITIAL_SCALE = 10.0


class MatchingHead(PairHead, CalibratedHead):
    """Logit of a pair: its cosine times a learned scale, plus a learned bias (Zhai et al., 2023).

    Outputs: see PairHead. targets: 1 for a true pair, 0 for a false one (batch,). Without a label column every row is
    a true pair, and the first input of each is contrasted with the second of all other rows of the batch, over all
    workers; a true pair has the weight of all its false pairs together, so that a score of 0.5 is at chance level.
    """

    target_width = 1

    def __init__(self, options: MatchingTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.labeled = options.column is not None
        self.embeddings = PairEmbeddings(options, dim)
        self.output_size = 2 * (self.embeddings.width + 2)
        self.log_scale = nn.Parameter(torch.full((1,), _INITIAL_SCALE).log())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, fused: FusedState) -> torch.Tensor:
        vectors, present = self.embeddings(fused)
        scaled = vectors[:, 0] * self.log_scale.exp()
        bias = self.bias.expand(len(vectors), 1)
        first, second = (
            torch.cat([scaled, bias], dim=1),
            torch.cat([vectors[:, 1], torch.ones_like(bias)], dim=1),
        )
        return self.pack_outputs(torch.stack([first, second], dim=1), present, fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        first, second, present = unpack_outputs(outputs)
        own = (first * second).sum(dim=1)
        if self.labeled:
            wanted = targets.nan_to_num()
            loss = nn.functional.binary_cross_entropy_with_logits(own, wanted, reduction="none")
            return loss * (present & ~targets.isnan())
        rows, start = all_gather_with_grad(outputs.float()) if self.training else (outputs, 0)
        _, others, complete = unpack_outputs(rows)
        row_indices = torch.arange(len(first), device=own.device) + start
        negatives = complete.unsqueeze(0) & (
            torch.arange(len(rows), device=own.device) != row_indices.unsqueeze(1)
        )
        negative_loss = nn.functional.softplus(first @ others.T) * negatives
        loss = nn.functional.softplus(-own) + negative_loss.sum(dim=1) / negatives.sum(dim=1).clamp(min=1)
        return loss * present

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"match": bool, "score": probability} for each sample; both are None if an input is absent."""
        first, second, present = unpack_outputs(outputs)
        scores = ((first * second).sum(dim=1) / self.temperature).sigmoid()
        return [
            {"match": score >= 0.5, "score": score} if complete else {"match": None, "score": None}
            for score, complete in zip(scores.tolist(), present.tolist(), strict=True)
        ]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute accuracy, precision, recall and F1 of true pairs, ROC AUC (0.5 if undefined) and ECE.

        Rows that lack an input do not count. Without a label column, as many false pairs of different rows are added.
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
            "ece": self.reliability(outputs, targets).error(),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return the number of evaluated pairs and of true pairs, and reliability."""
        logits, true = self._pairs(outputs, targets)
        counts = {"pairs": len(logits), "true_pairs": int(true.sum())}
        return {**counts, **self.calibration_details(self.reliability(outputs, targets))}

    @classmethod
    def response_schema(cls, config: MatchingTaskConfig) -> Schema:
        score = {**PROBABILITY, "type": ["number", "null"]}
        return object_schema({"match": {"type": ["boolean", "null"]}, "score": score})

    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        logits, true = self._pairs(outputs, targets)
        return binary_negative_log_likelihood(logits / temperature, true)

    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each pair, and whether it is true."""
        logits, true = self._pairs(outputs, targets)
        return sigmoid(logits / float(self.temperature)), true

    def _pairs(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of the evaluated pairs, and which are true.

        A false pair joins a row's first input with the second input of the row half the number of rows later.
        """
        first, second, present = unpack_output_arrays(outputs)
        first, second, true = first[present], second[present], targets[present] > 0.5
        logits = (first * second).sum(axis=1)
        if self.labeled or len(first) < 2:
            return logits, true
        false = (first * np.roll(second, len(second) // 2, axis=0)).sum(axis=1)
        return np.concatenate([logits, false]), np.concatenate([true, np.zeros(len(false), dtype=bool)])

"""Ranking: a score that orders the candidates of a query."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.all_gather import all_gather_with_grad
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import RankingTaskConfig, Target

_TARGET_WIDTH = 3


class RankingHead(TaskHead):
    """Scores (batch, 1). targets: relevance, and two numbers that identify the query (batch, 3).

    The loss of a row compares it with the other candidates of its query in the batch, over all workers; it is 0 if
    none has a different relevance.
    """

    cross_sample_loss = True

    def __init__(self, options: RankingTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.kind, self.ndcg_at = options.loss, options.ndcg_at
        self.linear = nn.Linear(dim, 1, bias=False)  # a bias does not change the order

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mine = torch.cat([outputs.float(), targets.float()], dim=1)
        rows, _ = all_gather_with_grad(mine) if self.training else (mine, 0)
        scores, relevance, query = rows[:, 0], rows[:, 1], rows[:, 2:]
        together = (targets[:, None, 1:] == query[None]).all(dim=2)  # NaN of padding rows equals nothing
        if self.kind == "pairwise":
            return _pairwise_loss(mine[:, 0], targets[:, 0], scores, relevance, together)
        return _listwise_loss(mine[:, 0], targets[:, 0], scores, relevance, together)

    def zero_loss(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, outputs.new_full((len(outputs), _TARGET_WIDTH), torch.nan)).sum() * 0.0

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"score": number} for each sample; better candidates of a query have higher scores."""
        return [{"score": score} for score in self.prediction_tensor(outputs).tolist()]

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the score, float (batch,)."""
        return outputs[:, 0]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute NDCG@`ndcg_at` and the mean reciprocal rank over the queries that have a relevant row."""
        found = self._by_query(outputs, targets)
        ndcg = [ndcg_score(scores, relevance, self.ndcg_at) for scores, relevance in found]
        ranks = [1 / first_relevant_rank(scores, relevance) for scores, relevance in found]
        return {
            "ndcg": float(np.mean(ndcg)) if ndcg else 0.0,
            "mrr": float(np.mean(ranks)) if ranks else 0.0,
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return the number of queries that have a relevant row, and `ndcg_at`."""
        return {"queries": len(self._by_query(outputs, targets)), "ndcg_at": self.ndcg_at}

    @classmethod
    def response_schema(cls, config: RankingTaskConfig) -> Schema:
        return object_schema({"score": {"type": "number"}})

    @classmethod
    def dummy_target(cls, config: RankingTaskConfig, inputs: Mapping[str, Input]) -> Target:
        return [1.0, 0.0, 0.0]

    def _by_query(self, outputs: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return scores and relevance of the rows of each query that has a relevant row."""
        if not len(targets):
            return []
        _, query = np.unique(targets[:, 1:], axis=0, return_inverse=True)
        order = np.argsort(query, kind="stable")
        borders = np.flatnonzero(np.diff(query[order])) + 1
        parts = np.split(order, borders)
        return [(outputs[part, 0], targets[part, 0]) for part in parts if (targets[part, 0] > 0).any()]


def _pairwise_loss(
    own: torch.Tensor,
    own_relevance: torch.Tensor,
    scores: torch.Tensor,
    relevance: torch.Tensor,
    same_query: torch.Tensor,
) -> torch.Tensor:
    """Compute RankNet's logistic loss (Burges et al., 2005), averaged over the candidates that a row is compared with."""
    order = torch.sign(own_relevance.nan_to_num()[:, None] - relevance.nan_to_num()[None])
    compared = same_query & (order != 0)
    losses = nn.functional.softplus(-order * (own[:, None] - scores[None])) * compared
    return losses.sum(dim=1) / compared.sum(dim=1).clamp(min=1)


def _listwise_loss(
    own: torch.Tensor,
    own_relevance: torch.Tensor,
    scores: torch.Tensor,
    relevance: torch.Tensor,
    same_query: torch.Tensor,
) -> torch.Tensor:
    """Compute each row's term of ListNet's softmax cross-entropy (Cao et al., 2007) over its query."""
    total = (same_query * relevance.nan_to_num()[None]).sum(dim=1)
    fraction = own_relevance.nan_to_num() / torch.where(total > 0, total, 1.0)
    some = same_query.any(dim=1, keepdim=True)
    normalizer = scores[None].masked_fill(~same_query & some, -torch.inf).logsumexp(dim=1)
    return fraction * (normalizer - own)


def _relevance_by_rank(scores: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Return relevance by falling score; of equal scores the least relevant comes first."""
    return relevance[np.lexsort((relevance, -scores))]


def ndcg_score(scores: np.ndarray, relevance: np.ndarray, k: int) -> float:
    """Compute NDCG@k (Järvelin and Kekäläinen, 2002) with relevance as gain."""
    discounts = 1 / np.log2(np.arange(2, min(k, len(scores)) + 2))
    gain = _relevance_by_rank(scores, relevance)[: len(discounts)] @ discounts
    return float(gain / (np.sort(relevance)[::-1][: len(discounts)] @ discounts))


def first_relevant_rank(scores: np.ndarray, relevance: np.ndarray) -> int:
    """Return the rank, from 1, of the first relevant row."""
    return int(np.argmax(_relevance_by_rank(scores, relevance) > 0)) + 1

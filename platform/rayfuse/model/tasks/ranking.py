"""A score by which candidates are put in order."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.gathering import gather_rows
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import RankingTask

_TARGETS = 3


class RankingHead(TaskHead):
    """A score (batch, 1). targets: relevance, and two numbers that stand for the query (batch, 3).

    The loss of a row is its part of that of its query, whose candidates in the batch, over all workers, it is held
    against; 0 where there are none of another relevance.
    """

    compares = True

    def __init__(self, options: RankingTask, dim: int) -> None:
        super().__init__(options, dim)
        self.kind, self.depth = options.loss, options.depth
        self.linear = nn.Linear(dim, 1, bias=False)  # what all rows share puts nothing in order

    def forward(self, fused: Fused) -> torch.Tensor:
        return self.linear(fused["vector"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mine = torch.cat([outputs.float(), targets.float()], dim=1)
        rows, _ = gather_rows(mine) if self.training else (mine, 0)
        scores, relevance, query = rows[:, 0], rows[:, 1], rows[:, 2:]
        together = (targets[:, None, 1:] == query[None]).all(dim=2)  # a filler's NaN is equal to nothing
        if self.kind == "pairwise":
            return _pairwise(mine[:, 0], targets[:, 0], scores, relevance, together)
        return _listwise(mine[:, 0], targets[:, 0], scores, relevance, together)

    def idle(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, outputs.new_full((len(outputs), _TARGETS), torch.nan)).sum() * 0.0

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"score": a number; of two candidates of a query, the better one has the higher}."""
        return [{"score": score} for score in outputs[:, 0].tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """NDCG@`depth` and the mean reciprocal rank of the first relevant row, over the queries that have one."""
        found = self._by_query(outputs, targets)
        ndcg = [ndcg_of(scores, relevance, self.depth) for scores, relevance in found]
        ranks = [1 / first_relevant(scores, relevance) for scores, relevance in found]
        return {
            "ndcg": float(np.mean(ndcg)) if ndcg else 0.0,
            "mrr": float(np.mean(ranks)) if ranks else 0.0,
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """How many queries have a relevant row, and were judged."""
        return {"queries": len(self._by_query(outputs, targets)), "depth": self.depth}

    def _by_query(self, outputs: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores and relevance of the rows of each query that has a relevant one."""
        if not len(targets):
            return []
        _, query = np.unique(targets[:, 1:], axis=0, return_inverse=True)
        order = np.argsort(query, kind="stable")
        borders = np.flatnonzero(np.diff(query[order])) + 1
        parts = np.split(order, borders)
        return [(outputs[part, 0], targets[part, 0]) for part in parts if (targets[part, 0] > 0).any()]


def _pairwise(
    own: torch.Tensor,
    own_relevance: torch.Tensor,
    scores: torch.Tensor,
    relevance: torch.Tensor,
    together: torch.Tensor,
) -> torch.Tensor:
    """RankNet: the logistic loss of each two candidates, the mean over those that a row is compared with."""
    order = torch.sign(own_relevance.nan_to_num()[:, None] - relevance.nan_to_num()[None])
    compared = together & (order != 0)
    losses = nn.functional.softplus(-order * (own[:, None] - scores[None])) * compared
    return losses.sum(dim=1) / compared.sum(dim=1).clamp(min=1)


def _listwise(
    own: torch.Tensor,
    own_relevance: torch.Tensor,
    scores: torch.Tensor,
    relevance: torch.Tensor,
    together: torch.Tensor,
) -> torch.Tensor:
    """Softmax cross-entropy: a row's share of its query's relevance, times minus the log of its share of the scores."""
    total = (together * relevance.nan_to_num()[None]).sum(dim=1)
    share = own_relevance.nan_to_num() / torch.where(total > 0, total, 1.0)
    some = together.any(dim=1, keepdim=True)
    normaliser = scores[None].masked_fill(~together & some, -torch.inf).logsumexp(dim=1)
    return share * (normaliser - own)


def _ranked(scores: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Relevance in the order of the scores; among equal scores the worst comes first."""
    return relevance[np.lexsort((relevance, -scores))]


def ndcg_of(scores: np.ndarray, relevance: np.ndarray, depth: int) -> float:
    """Normalised discounted cumulative gain of the first `depth` (Järvelin and Kekäläinen, 2002), gain = relevance."""
    discounts = 1 / np.log2(np.arange(2, min(depth, len(scores)) + 2))
    gain = _ranked(scores, relevance)[: len(discounts)] @ discounts
    return float(gain / (np.sort(relevance)[::-1][: len(discounts)] @ discounts))


def first_relevant(scores: np.ndarray, relevance: np.ndarray) -> int:
    """The rank, from 1, of the first relevant row."""
    return int(np.argmax(_ranked(scores, relevance) > 0)) + 1

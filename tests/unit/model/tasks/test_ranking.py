"""Ranking: losses of a query's rows, NDCG and MRR."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.ranking import ndcg_score
from rayfuse.spec.tasks.numbers import hash_to_floats
from rayfuse.spec.tasks.ranking import RANKING_METRICS, RankingTaskConfig

rng = np.random.default_rng(0)


def ranking(**options: Any) -> Any:
    return build_task(RankingTaskConfig(type="ranking", column="x", query_column="query", **options), 4)


def targets_of(relevance: list[float], queries: str) -> torch.Tensor:
    return torch.tensor([[r, *hash_to_floats(q)] for r, q in zip(relevance, queries, strict=True)])


def test_listwise_loss_by_hand() -> None:
    scores = torch.tensor([[1.0], [2.0], [0.0], [5.0], [6.0]])
    loss = ranking().loss(scores, targets_of([3, 1, 0, 0, 0], "aaabb"))
    shares = scores[:3, 0].log_softmax(dim=0)
    torch.testing.assert_close(loss, torch.tensor([-0.75 * shares[0], -0.25 * shares[1], 0, 0, 0]))


def test_pairwise_loss_by_hand() -> None:
    scores = torch.tensor([[1.0], [2.0], [0.0], [5.0]])
    loss = ranking(loss="pairwise").loss(scores, targets_of([2, 1, 1, 7], "aaab"))
    pair = torch.nn.functional.softplus(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(loss, torch.tensor([pair.mean(), pair[0], pair[1], 0]))


@pytest.mark.parametrize("kind", ["pairwise", "listwise"])
def test_losses_order_the_rows(kind: str) -> None:
    scores = torch.zeros(6, 1, requires_grad=True)
    targets = targets_of([0, 1, 2, 5, 0, 0], "aaabbb")
    head, optimizer = ranking(loss=kind).train(), torch.optim.Adam([scores], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        head.loss(scores, targets).sum().backward()
        optimizer.step()
    assert head.metrics(scores.detach().numpy(), targets.numpy()) == {"ndcg": 1, "mrr": 1}
    assert scores[0] < scores[1] < scores[2]


def test_padding_rows_do_not_count() -> None:
    scores, targets = torch.randn(3, 1), targets_of([1, 0, 0], "aab")
    filled = torch.cat([targets, torch.full((1, 3), torch.nan)])
    for kind in ("pairwise", "listwise"):
        loss = ranking(loss=kind).loss(torch.cat([scores, torch.zeros(1, 1)]), filled)
        torch.testing.assert_close(loss[:3], ranking(loss=kind).loss(scores, targets))
        assert loss[3] == 0


def test_metrics_against_sklearn() -> None:
    head = ranking(ndcg_at=5)
    scores = rng.normal(size=(60, 1)).astype(np.float32)
    queries = "".join("abcdef"[i % 6] for i in range(60))
    targets = targets_of([float(n) for n in rng.integers(0, 4, 60)], queries).numpy()
    targets[5::6, 0] = 0  # query f has nothing relevant
    ndcg, mrr = [], []
    for i in range(5):
        relevance, given = targets[i::6, 0], scores[i::6, 0]
        ndcg.append(sklearn.ndcg_score([relevance], [given], k=5))
        order = relevance[np.argsort(-given)]
        mrr.append(1 / (1 + np.flatnonzero(order > 0)[0]))
    found = head.metrics(scores, targets)
    assert found == pytest.approx({"ndcg": np.mean(ndcg), "mrr": np.mean(mrr)})
    assert {"loss", *found} == set(RANKING_METRICS)
    assert head.details(scores, targets) == {"queries": 5, "ndcg_at": 5}


def test_ties_count_as_the_worst_order() -> None:
    relevance = np.array([1.0, 0.0, 0.0])
    assert ndcg_score(np.zeros(3), relevance, 10) == pytest.approx(0.5)
    found = ranking().metrics(np.zeros((3, 1)), targets_of([1, 0, 0], "aaa").numpy())
    assert found["mrr"] == pytest.approx(1 / 3)

"""Matching and retrieval: pairs of one row and of different rows, rows that lack a side, ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.retrieval import retrieval_ranks
from rayfuse.spec.tasks.matching import MATCHING_METRICS, MatchingTaskConfig
from rayfuse.spec.tasks.retrieval import RETRIEVAL_METRICS, RetrievalTaskConfig

rng = np.random.default_rng(0)
ALONE = np.full((1, 2), np.nan, dtype=np.float32)


def matching(**options: Any) -> Any:
    return build_task(MatchingTaskConfig(type="matching", inputs=("a", "b"), dim=4, **options), 8)


def retrieval(**options: Any) -> Any:
    return build_task(RetrievalTaskConfig(type="retrieval", inputs=("a", "b"), dim=4, **options), 8)


def fused(rows: int, lacking: tuple[int, ...] = ()) -> Any:
    """Two inputs of two tokens; the rows `lacking` have no second one."""
    mask = torch.ones(rows, 2, dtype=torch.bool)
    second = mask.clone()
    second[list(lacking)] = False
    inputs = {"a": (torch.randn(rows, 2, 8), mask), "b": (torch.randn(rows, 2, 8), second)}
    return {"vector": torch.zeros(rows, 8), "inputs": inputs, "word_starts": {}}


def outputs_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Make outputs with these factors, both inputs present."""
    ones = np.ones((len(first), 1))
    both = [np.concatenate([side, ones], axis=1) for side in (first, second)]
    return np.stack(both, axis=1).astype(np.float32)


def test_a_pair_is_scored_by_the_cosine() -> None:
    head = matching()
    torch.nn.init.constant_(head.bias, -2.0)
    given = fused(3, lacking=(2,))
    outputs = head(given)
    vectors, _ = head.embeddings(given)
    logits = (outputs[:, 0, :-1] * outputs[:, 1, :-1]).sum(dim=1)
    torch.testing.assert_close(logits, 10 * (vectors[:, 0] * vectors[:, 1]).sum(dim=1) - 2)
    answers = head.format_predictions(outputs)
    assert answers[0]["score"] == pytest.approx(float(torch.sigmoid(logits[0]).detach()))
    assert answers[0]["match"] is (float(logits[0].detach()) >= 0)
    assert answers[2] == {"match": None, "score": None}


def test_matching_without_labels_contrasts_with_other_rows() -> None:
    head = matching().train()
    outputs = head(fused(4, lacking=(1,))).detach()
    loss = head.loss(outputs, torch.ones(4))
    first, second = outputs[:, 0, :-1], outputs[:, 1, :-1]
    logits = first @ second.T
    softplus = torch.nn.functional.softplus
    by_hand = softplus(-logits[0, 0]) + (softplus(logits[0, 2]) + softplus(logits[0, 3])) / 2
    torch.testing.assert_close(loss[0], by_hand)
    assert loss[1] == 0


def test_matching_with_labels_depends_on_single_rows() -> None:
    head = matching(column="x").train()
    outputs = head(fused(4, lacking=(1,))).detach()
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = head.loss(outputs, targets)
    logits = (outputs[:, 0, :-1] * outputs[:, 1, :-1]).sum(dim=1)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(loss, wanted * torch.tensor([1, 0, 1, 1]))
    torch.testing.assert_close(loss[2:], head.loss(outputs[2:], targets[2:]))


def test_matching_metrics() -> None:
    logits = rng.normal(size=100)
    true = (rng.random(100) < 0.5).astype(np.float32)
    outputs = outputs_of(logits[:, None], np.ones((100, 1)))
    found = matching(column="x").metrics(outputs, true)
    assert found["accuracy"] == pytest.approx(((logits >= 0) == true).mean())
    assert found["auc"] == pytest.approx(roc_auc_score(true, logits), abs=1e-6)
    assert {"loss", *found} == set(MATCHING_METRICS)
    vectors = np.eye(6)
    unlabelled = matching().metrics(outputs_of(8 * vectors - 4, vectors), np.ones(6, dtype=np.float32))
    assert (unlabelled["accuracy"], unlabelled["auc"]) == (1, 1)
    outputs[:, :, -1] = 0
    nothing = matching(column="x").metrics(outputs, true)
    assert (nothing["accuracy"], nothing["auc"], nothing["ece"]) == (0, 0.5, 0)


def by_hand(outputs: torch.Tensor, row: int, others: list[int]) -> torch.Tensor:
    """InfoNCE of a row in both directions, against itself and `others`."""
    first, second = outputs[:, 0, :-1], outputs[:, 1, :-1]
    forward = -(first[row] @ second[[row, *others]].T).log_softmax(dim=0)[0]
    backward = -(second[row] @ first[[row, *others]].T).log_softmax(dim=0)[0]
    return (forward + backward) / 2


def test_retrieval_contrasts_with_complete_rows_of_other_groups() -> None:
    head = retrieval(column="x").train()
    outputs = head(fused(5, lacking=(1,))).detach()
    targets = torch.tensor([[1.0, 2.0], [3.0, 3.0], [1.0, 2.0], [torch.nan] * 2, [4.0, 4.0]])
    loss = head.loss(outputs, targets)
    torch.testing.assert_close(loss[0], by_hand(outputs, 0, [3, 4]))  # row 2 is a match too
    torch.testing.assert_close(loss[3], by_hand(outputs, 3, [0, 2, 4]))
    assert loss[1] == 0


def test_the_temperature_is_learned_within_bounds() -> None:
    head = retrieval()
    outputs = head(fused(3))
    torch.testing.assert_close(outputs[:, 0, :-1].norm(dim=1), torch.full((3,), 1 / 0.07))
    head.loss(outputs, torch.full((3, 2), torch.nan)).sum().backward()
    assert head.log_scale.grad.abs() > 0
    torch.nn.init.constant_(head.log_scale, 9)
    torch.testing.assert_close(head(fused(1))[0, 0, :-1].norm(), torch.tensor(100.0))


def test_harder_negatives_weigh_more() -> None:
    plain, hard = retrieval(), retrieval(hard_negative_beta=5.0)
    outputs = plain(fused(6)).detach()
    targets = torch.full((6, 2), torch.nan)
    first, second = outputs[0, 0, :-1], outputs[:, 1, :-1]
    logits = first @ second.T
    weights = torch.exp(5 * logits[1:] * 0.07)
    weights = 5 * weights / weights.sum()
    forward = torch.log(1 + (weights * torch.exp(logits[1:] - logits[0])).sum())
    logits = torch.stack([outputs[0, 0, :-1] @ outputs[:, 1, :-1].T])
    own = torch.zeros(1, dtype=torch.int64)
    negatives = torch.tensor([[False] + [True] * 5])
    found = hard.direction_loss(logits, own, negatives, torch.tensor(1 / 0.07))
    torch.testing.assert_close(found[0], forward)
    assert (hard.loss(outputs, targets) > plain.loss(outputs, targets)).float().mean() > 0.5


def test_the_hardest_negative_sets_the_margin() -> None:
    head = retrieval(loss="max_violation", margin=0.2)
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
    outputs = torch.from_numpy(outputs_of(3 * vectors.numpy(), vectors.numpy()))
    loss = head.loss(outputs, torch.full((3, 2), torch.nan))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 0.0]))
    swapped = torch.from_numpy(outputs_of(3 * vectors.numpy(), vectors.numpy()[[1, 0, 2]]))
    loss = head.loss(swapped, torch.full((3, 2), torch.nan))
    torch.testing.assert_close(loss, torch.tensor([0.4, 0.4, 0.0]))  # 1 instead of 0.8, and 0.2 more


def test_cosine_loss_depends_on_single_pairs() -> None:
    head = retrieval(loss="cosine")
    first, second = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    outputs = torch.from_numpy(outputs_of(7 * first.numpy(), second.numpy()))
    torch.testing.assert_close(head.loss(outputs, torch.full((2, 2), torch.nan)), torch.tensor([0.0, 0.2]))
    assert head.details(outputs.numpy(), np.repeat(ALONE, 2, 0)) == {
        "candidates": 2,
        "learned_temperature": None,
    }
    outputs[1, 0, -1] = 0  # without its first input
    torch.testing.assert_close(head.loss(outputs, torch.full((2, 2), torch.nan)), torch.zeros(2))


def test_retrieval_metrics_by_hand() -> None:
    scores = np.array([[4, 1, 2.5, 3], [1, 4, 2.6, 3.5], [3, 3.9, 2, 1], [5, 6, 7, 4]])
    found = retrieval().metrics(outputs_of(scores, np.eye(4)), np.repeat(ALONE, 4, 0))
    assert found["forward_r1"] == 0.5
    assert found["forward_r5"] == found["backward_r10"] == 1
    assert found["forward_median_rank"] == 2  # 1, 1, 3, 4
    assert found["backward_median_rank"] == 2  # 2, 2, 4, 1
    assert found["backward_r1"] == 0.25
    assert found["r1"] == 0.375
    assert found["median_rank"] == 2
    assert {"loss", *found} == set(RETRIEVAL_METRICS)


def test_ranks_of_ties_and_of_several_matches() -> None:
    same = np.ones((10, 2))
    assert retrieval_ranks(same, same, np.repeat(ALONE, 10, 0)).tolist() == [5.5] * 10
    belongs = np.array([[0, 0], [0, 0], [1, 1]], dtype=np.float32)
    scores = np.array([[1, 3, 2], [3, 1, 2], [5, 4, 3]], dtype=float)
    assert retrieval_ranks(scores, np.eye(3), belongs).tolist() == [1, 1, 3]


def test_retrieval_without_pairs() -> None:
    outputs = retrieval()(fused(3, lacking=(0, 1, 2))).detach().numpy()
    found = retrieval().metrics(outputs, np.repeat(ALONE, 3, 0))
    assert (found["r1"], found["r10"], found["median_rank"]) == (0, 0, 3)


def test_retrieval_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates = rng.normal(size=(25, 4)), rng.normal(size=(25, 4))
    whole = retrieval_ranks(queries, candidates, np.repeat(ALONE, 25, 0))
    monkeypatch.setattr("rayfuse.model.tasks.retrieval._MAX_SIMILARITIES", 7 * 25)
    assert retrieval_ranks(queries, candidates, np.repeat(ALONE, 25, 0)).tolist() == whole.tolist()


def test_predictions_have_embeddings() -> None:
    head = retrieval()
    whole, half = head.format_predictions(head(fused(2, lacking=(1,))))
    assert set(whole["embeddings"]) == {"a", "b"}
    assert np.linalg.norm(whole["embeddings"]["a"]) == pytest.approx(1)
    assert whole["similarity"] == pytest.approx(np.dot(*whole["embeddings"].values()), abs=1e-6)
    assert set(half["embeddings"]) == {"a"}
    assert half["similarity"] is None


def test_an_absent_input_does_not_change_other_rows() -> None:
    for head in (matching(), retrieval()):
        given = fused(4, lacking=(1,))
        targets = torch.ones(4) if head.target_width == 1 else torch.full((4, 2), torch.nan)
        torch.manual_seed(0)
        loss = head.loss(head(given), targets)
        given["inputs"]["b"][0][1] += 1
        torch.testing.assert_close(head.loss(head(given), targets), loss)


def hub_and_others(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Make unit vectors of queries and candidates; the last candidate is a hub, nearest to every query."""
    spread = np.random.default_rng(3).standard_normal((rows, 4))
    common = np.array([3.0, 0, 0, 0])
    queries, answers = spread + common, spread + 0.3 * common
    answers[-1] = common
    return tuple(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, answers))  # type: ignore[return-value]


def test_a_bank_corrects_for_hubness() -> None:
    queries, answers = hub_and_others()
    head, plain = retrieval(csls_bank=64), retrieval()
    outputs, alone = outputs_of(7 * queries, answers), np.full((len(queries), 2), np.nan)
    assert head.metrics(outputs, alone) == plain.metrics(outputs, alone), "an empty bank changes nothing"
    assert set(head.fill_memory_bank(outputs)) == {"csls_bank"}
    found, before = (some.metrics(outputs, alone)["forward_r1"] for some in (head, plain))
    assert found > before + 0.2
    assert torch.linalg.norm(head.csls_bank[:, : len(queries)], dim=2) == pytest.approx(1, abs=1e-5)
    assert not head.csls_bank[:, len(queries) :].any()


def test_callers_can_correct_for_hubness() -> None:
    queries, answers = hub_and_others()
    head = retrieval(csls_bank=32)
    outputs, alone = outputs_of(7 * queries, answers), np.full((len(queries), 2), np.nan)
    head.fill_memory_bank(outputs)
    predictions = head.format_predictions(torch.from_numpy(outputs))
    sides = [np.array([prediction["embeddings"][name] for prediction in predictions]) for name in ("a", "b")]
    hubs = [np.array([prediction["hubness"][name] for prediction in predictions]) for name in ("a", "b")]
    scores = 2 * sides[0] @ sides[1].T - hubs[0][:, None] - hubs[1][None]
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1) + 1
    assert head.metrics(outputs, alone)["forward_r1"] == pytest.approx((ranks == 1).mean())
    by_hand = np.sort(sides[1] @ head.csls_bank[0].numpy().T, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(hubs[1], by_hand, rtol=1e-4)
    assert "hubness" not in retrieval().format_predictions(torch.from_numpy(outputs))[0]

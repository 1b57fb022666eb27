"""Average precision of many classes: exact as scikit-learn computes it, and close to it from histograms."""

import pickle

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from rayfuse.model.tasks.average_precision import AveragePrecision


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and labels of which each row has about three, with higher logits."""
    rng = np.random.default_rng(seed)
    true = rng.random((rows, classes)) < 3 / classes
    return (rng.normal(-4, 2, (rows, classes)) + 3 * true).astype(np.float32), true


def wanted(logits: np.ndarray, true: np.ndarray) -> list[float]:
    return [
        average_precision_score(column, scores) if column.any() else float("nan")
        for column, scores in zip(true.T, logits.T, strict=True)
    ]


def in_batches(logits: np.ndarray, true: np.ndarray, size: int) -> AveragePrecision:
    found = AveragePrecision(logits.shape[1])
    for start in range(0, len(logits), size):
        found.add(logits[start : start + size], true[start : start + size])
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_few_values_are_exact(ties: bool) -> None:
    logits, true = drawn(200, 30)
    logits = np.round(logits) if ties else logits
    true[:, 7] = False
    found = in_batches(logits, true, 64)
    np.testing.assert_allclose(found.by_class(), wanted(logits, true), rtol=1e-6)
    assert np.isnan(found.by_class()[7])


def test_many_values_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, true = drawn(3000, 100)
    monkeypatch.setattr("rayfuse.model.tasks.average_precision.MAX_EXACT_VALUES", 1000)
    found = in_batches(logits, true, 250)
    exact = wanted(logits, true)
    np.testing.assert_allclose(found.by_class(), exact, atol=0.02)
    assert found.by_class().mean() == pytest.approx(np.mean(exact), abs=0.002)
    sizes = {len(pickle.dumps(in_batches(logits[:rows], true[:rows], 250))) for rows in (500, 3000)}
    assert max(sizes) - min(sizes) < 1000


def test_the_result_does_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, true = drawn(300, 20)
    for limit in (10**6, 4000, 10):  # all values are exact; only those of each worker; none
        monkeypatch.setattr("rayfuse.model.tasks.average_precision.MAX_EXACT_VALUES", limit)
        whole = in_batches(logits, true, 50)
        merged = AveragePrecision(20)
        for rank in (0, 1):
            merged.merge(in_batches(logits[rank::2], true[rank::2], 25))
        np.testing.assert_allclose(merged.by_class(), whole.by_class(), rtol=1e-12)


def test_infinite_logits_and_no_rows() -> None:
    assert np.isnan(AveragePrecision(3).by_class()).all()
    logits = np.array([[np.inf], [-np.inf], [0.0]], dtype=np.float32)
    assert in_batches(logits, np.array([[True], [False], [True]]), 1).by_class() == [1.0]

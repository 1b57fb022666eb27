"""Losses, predictions and metrics compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.spec.tasks.classification import CLASSIFICATION_METRICS, ClassificationTaskConfig
from rayfuse.spec.tasks.regression import REGRESSION_METRICS, RegressionTaskConfig

CLASSES = ["a", 7, True]


@pytest.fixture
def chooser() -> Any:
    return build_task(ClassificationTaskConfig(type="classification", column="x", classes=CLASSES), 4)


@pytest.fixture
def measurer() -> Any:
    return build_task(RegressionTaskConfig(type="regression", column="x", mean=100.0, std=20.0), 4)


def logits(predicted: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[predicted] * 4


def test_classification_predictions(chooser: Any) -> None:
    [first, second] = chooser.format_predictions(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert first["label"] == "a"
    assert second["label"] is True
    assert list(first["scores"]) == ["a", "7", "True"]
    e = np.exp(2)
    assert list(first["scores"].values()) == pytest.approx([e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    [huge] = chooser.format_predictions(torch.tensor([[1e4, -1e4, 0.0]]))
    assert list(huge["scores"].values()) == [1, 0, 0]


def test_classification_loss(chooser: Any) -> None:
    outputs, targets = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    by_hand = [np.log(np.exp([1, 2, 0.5]).sum()) - 2, np.log(3)]
    torch.testing.assert_close(chooser.loss(outputs, targets), torch.tensor(by_hand, dtype=torch.float32))


def test_classification_metrics_by_hand(chooser: Any) -> None:
    """True a a a 7 7 T, predicted a a 7 7 T T."""
    true = np.array([0, 0, 0, 1, 1, 2])
    found = chooser.metrics(logits([0, 0, 1, 1, 2, 2]), true)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision_macro"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["recall_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1_macro"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["recall_weighted"] == pytest.approx(4 / 6)
    assert found["f1_weighted"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert found["f1_micro"] == found["precision_micro"] == pytest.approx(4 / 6)
    assert {"loss", *found} == set(CLASSIFICATION_METRICS)
    details = chooser.details(logits([0, 0, 1, 1, 2, 2]), true)
    assert details["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert details["per_class"]["7"] == pytest.approx(
        {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    )
    assert details["classes"] == ["a", "7", "True"]


def test_classification_metrics_against_sklearn(chooser: Any) -> None:
    chance = np.random.default_rng(0)
    outputs, true = chance.normal(size=(200, 3)).astype(np.float32), chance.integers(0, 3, 200)
    predicted = outputs.argmax(1)
    found = chooser.metrics(outputs, true.astype(np.float32))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average in ("micro", "macro", "weighted"):
        assert found[f"f1_{average}"] == pytest.approx(sklearn.f1_score(true, predicted, average=average))
        assert found[f"recall_{average}"] == pytest.approx(
            sklearn.recall_score(true, predicted, average=average)
        )
    assert chooser.details(outputs, true)["confusion"] == sklearn.confusion_matrix(true, predicted).tolist()


def test_classes_that_do_not_occur_are_reported_and_not_averaged(chooser: Any) -> None:
    found = chooser.metrics(logits([0, 0, 1]), np.array([0, 0, 1]))
    assert {value for name, value in found.items() if name != "ece"} == {1.0}
    details = chooser.details(logits([0, 0, 1]), np.array([0, 0, 1]))
    assert details["per_class"]["True"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_regression_predictions_and_loss(measurer: Any) -> None:
    torch.nn.init.zeros_(measurer.linear.weight)
    torch.nn.init.constant_(measurer.linear.bias, 0.5)
    outputs = measurer({"vector": torch.zeros(2, 4), "inputs": {}, "word_starts": {}})
    assert measurer.format_predictions(outputs) == [{"value": 110.0}, {"value": 110.0}]
    assert outputs.shape == (2, 1)
    loss = measurer.loss(outputs, torch.tensor([100.0, 50.0]))
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.5**2, 3 - 0.5]))  # Huber, in deviations


def test_regression_metrics(measurer: Any) -> None:
    chance = np.random.default_rng(0)
    true = chance.normal(100, 20, 500).astype(np.float32)
    outputs = (true + chance.normal(0, 5, 500)).astype(np.float32)[:, None]
    found = measurer.metrics(outputs, true)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, outputs[:, 0]), rel=1e-5)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(true, outputs[:, 0]), rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn.r2_score(true, outputs[:, 0]), rel=1e-5)
    assert {"loss", *found} == set(REGRESSION_METRICS)
    assert measurer.details(outputs, true) == {}


def test_regression_metrics_of_large_and_of_constant_targets(measurer: Any) -> None:
    large = np.array([1e30, 3e30], dtype=np.float32)
    assert measurer.metrics(large[:, None], large) == {"mae": 0, "rmse": 0, "r2": 1}
    assert np.isfinite(list(measurer.metrics(-large[:, None], large).values())).all()
    assert measurer.metrics(np.array([[1.0], [2.0]]), np.array([3.0, 3.0])) == pytest.approx(
        {"mae": 1.5, "rmse": np.sqrt(2.5), "r2": 0}
    )


def test_metrics_are_plain_numbers(chooser: Any, measurer: Any) -> None:
    """Ray keeps them as JSON."""
    for head in (chooser, measurer):
        found = head.metrics(logits([0, 1]), np.array([0.0, 1.0], dtype=np.float32))
        assert {type(value) for value in found.values()} == {float}

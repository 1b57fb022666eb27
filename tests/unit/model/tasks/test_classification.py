"""Classification: losses, predictions and metrics, compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.spec.tasks.classification import CLASSIFICATION_METRICS, ClassificationTaskConfig

CLASSES = ["a", 7, True]


@pytest.fixture
def classifier() -> Any:
    return build_task(ClassificationTaskConfig(type="classification", column="x", classes=CLASSES), 4)


def classification(**options: Any) -> Any:
    task = ClassificationTaskConfig(type="classification", column="x", classes=["a", "b", "c"], **options)
    return build_task(task, 4)


def logits(predicted: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[predicted] * 4


def test_classification_predictions(classifier: Any) -> None:
    [first, second] = classifier.format_predictions(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert first["label"] == "a"
    assert second["label"] is True
    assert list(first["scores"]) == ["a", "7", "True"]
    e = np.exp(2)
    assert list(first["scores"].values()) == pytest.approx([e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    [huge] = classifier.format_predictions(torch.tensor([[1e4, -1e4, 0.0]]))
    assert list(huge["scores"].values()) == [1, 0, 0]


def test_classification_loss(classifier: Any) -> None:
    outputs, targets = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    by_hand = [np.log(np.exp([1, 2, 0.5]).sum()) - 2, np.log(3)]
    torch.testing.assert_close(classifier.loss(outputs, targets), torch.tensor(by_hand, dtype=torch.float32))


def test_classification_metrics_by_hand(classifier: Any) -> None:
    """True a a a 7 7 T, predicted a a 7 7 T T."""
    true = np.array([0, 0, 0, 1, 1, 2])
    found = classifier.metrics(logits([0, 0, 1, 1, 2, 2]), true)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision_macro"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["recall_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1_macro"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["recall_weighted"] == pytest.approx(4 / 6)
    assert found["f1_weighted"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert found["f1_micro"] == found["precision_micro"] == pytest.approx(4 / 6)
    assert {"loss", *found} == set(CLASSIFICATION_METRICS)
    details = classifier.details(logits([0, 0, 1, 1, 2, 2]), true)
    assert details["confusion"] == [[0, 0, 2], [0, 1, 1], [1, 1, 1], [1, 2, 1], [2, 2, 1]]
    assert details["per_class"]["7"] == pytest.approx(
        {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    )
    assert details["classes"] == ["a", "7", "True"]


def test_classification_metrics_against_sklearn(classifier: Any) -> None:
    rng = np.random.default_rng(0)
    outputs, true = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 3, 200)
    predicted = outputs.argmax(1)
    found = classifier.metrics(outputs, true.astype(np.float32))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average in ("micro", "macro", "weighted"):
        assert found[f"f1_{average}"] == pytest.approx(sklearn.f1_score(true, predicted, average=average))
        assert found[f"recall_{average}"] == pytest.approx(
            sklearn.recall_score(true, predicted, average=average)
        )
    table = np.zeros((3, 3), dtype=int)
    for row, column, count in classifier.details(outputs, true)["confusion"]:
        table[row, column] = count
    np.testing.assert_array_equal(table, sklearn.confusion_matrix(true, predicted))


def test_classes_that_do_not_occur_are_reported_and_not_averaged(classifier: Any) -> None:
    found = classifier.metrics(logits([0, 0, 1]), np.array([0, 0, 1]))
    assert {value for name, value in found.items() if name != "ece"} == {1.0}
    details = classifier.details(logits([0, 0, 1]), np.array([0, 0, 1]))
    assert details["per_class"]["True"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_weighted_and_focal_losses() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0.0, 2.0])
    plain = classification().loss(logits, targets)
    p = torch.exp(-plain)
    focal = classification(focal_gamma=2.0).loss(logits, targets)
    torch.testing.assert_close(focal, plain * (1 - p) ** 2)
    weighted = classification(class_weights={"c": 3.0}).loss(logits, targets)
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 3.0]))
    smooth = classification(label_smoothing=0.3).loss(logits, targets)
    every = -logits.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(smooth, 0.7 * plain + 0.3 * every)


def test_metrics_are_plain_numbers(classifier: Any) -> None:
    """Ray keeps them as JSON."""
    metrics = classifier.metrics(logits([0, 1]), np.array([0.0, 1.0], dtype=np.float32))
    assert {type(value) for value in metrics.values()} == {float}

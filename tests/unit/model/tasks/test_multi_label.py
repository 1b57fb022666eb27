"""Multi-label classification: losses, predictions and metrics, compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.spec.tasks import MultiLabelTaskConfig

rng = np.random.default_rng(0)


def multi_label(**options: Any) -> Any:
    return build_task(
        MultiLabelTaskConfig(type="multi_label", column="x", classes=["a", "b", "c"], **options), 4
    )


def test_multi_label_losses() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    p = torch.sigmoid(logits)
    truth = torch.where(targets > 0, p, 1 - p)
    torch.testing.assert_close(multi_label().loss(logits, targets), -truth.log().mean(dim=1))
    focal = multi_label(focal_gamma=1.0).loss(logits, targets)
    torch.testing.assert_close(focal, (-truth.log() * (1 - truth)).mean(dim=1))
    weighted = multi_label(class_weights={"a": 2.0, "b": 5.0}).loss(logits, targets)
    torch.testing.assert_close(weighted, -(truth.log() * torch.tensor([2.0, 1.0, 1.0])).mean(dim=1))


def test_multi_label_metrics_against_sklearn() -> None:
    outputs = rng.normal(size=(200, 3)).astype(np.float32)
    true = (rng.random((200, 3)) < 0.4).astype(np.float32)
    found, predicted = multi_label().metrics(outputs, true), outputs >= 0
    assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average in ("micro", "macro"):
        assert found[f"f1_{average}"] == pytest.approx(sklearn.f1_score(true, predicted, average=average))
    assert found["map"] == pytest.approx(sklearn.average_precision_score(true, outputs, average="macro"))
    assert multi_label().details(outputs, true)["per_class"]["b"]["support"] == true[:, 1].sum()
    none = multi_label().metrics(outputs, np.zeros_like(true))
    assert (none["map"], none["f1_micro"]) == (0, 0)


def test_multi_label_predictions() -> None:
    [prediction] = multi_label(threshold=0.7).format_predictions(torch.tensor([[1.0, 0.8, -9.0]]))
    assert prediction["labels"] == ["a"]
    assert prediction["scores"] == pytest.approx({"a": 0.7310586, "b": 0.6899745, "c": 0.0001234}, abs=1e-6)

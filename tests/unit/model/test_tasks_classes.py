"""Losses, predictions and metrics of tasks over classes, compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.ordinal import log_probabilities, quadratic_kappa
from rayfuse.spec.tasks import ClassificationTaskConfig, MultiLabelTaskConfig, OrdinalTaskConfig

chance = np.random.default_rng(0)


def classification(**options: Any) -> Any:
    task = ClassificationTaskConfig(type="classification", column="x", classes=["a", "b", "c"], **options)
    return build_task(task, 4)


def multi_label(**options: Any) -> Any:
    return build_task(
        MultiLabelTaskConfig(type="multi_label", column="x", classes=["a", "b", "c"], **options), 4
    )


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
    outputs = chance.normal(size=(200, 3)).astype(np.float32)
    true = (chance.random((200, 3)) < 0.4).astype(np.float32)
    found, predicted = multi_label().metrics(outputs, true), outputs >= 0
    assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average in ("micro", "macro"):
        assert found[f"f1_{average}"] == pytest.approx(sklearn.f1_score(true, predicted, average=average))
    assert found["map"] == pytest.approx(sklearn.average_precision_score(true, outputs, average="macro"))
    assert multi_label().details(outputs, true)["per_class"]["b"]["support"] == true[:, 1].sum()
    none = multi_label().metrics(outputs, np.zeros_like(true))
    assert (none["map"], none["f1_micro"]) == (0, 0)


def test_multi_label_predictions() -> None:
    [answer] = multi_label(threshold=0.7).format_predictions(torch.tensor([[1.0, 0.8, -9.0]]))
    assert answer["labels"] == ["a"]
    assert answer["scores"] == pytest.approx({"a": 0.7310586, "b": 0.6899745, "c": 0.0001234}, abs=1e-6)


def ordinal(classes: list[Any]) -> Any:
    return build_task(OrdinalTaskConfig(type="ordinal", column="x", classes=classes), 4)


def test_ordinal_probabilities() -> None:
    above = torch.tensor([[3.0, 1.0, -2.0], [60.0, 59.0, 58.0], [-80.0, -90.0, -100.0]])
    p = above.double().sigmoid()
    found = log_probabilities(above)
    wanted = torch.stack([1 - p[0, 0], p[0, 0] - p[0, 1], p[0, 1] - p[0, 2], p[0, 2]]).float()
    torch.testing.assert_close(found[0].exp(), wanted)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(3))


def test_ordinal_thresholds_stay_in_order() -> None:
    head = ordinal([1, 2, 3, 4])
    torch.nn.init.normal_(head.threshold_steps, std=5)
    outputs = head({"vector": torch.randn(8, 4), "inputs": {}, "word_starts": {}})
    assert outputs.shape == (8, 3)
    assert (outputs.diff(dim=1) < 0).all()
    assert ordinal(["low", "high"])({"vector": torch.randn(8, 4), "inputs": {}, "word_starts": {}}).shape == (
        8,
        1,
    )


def test_ordinal_metrics_against_sklearn() -> None:
    head = ordinal([1, 2, 3])
    outputs = (chance.normal(0, 2, (300, 1)) + np.array([1, -1])).astype(np.float32)
    true = chance.integers(0, 3, 300).astype(np.float32)
    predicted = log_probabilities(torch.from_numpy(outputs)).argmax(dim=1).numpy()
    found = head.metrics(outputs, true)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, predicted))
    kappa = sklearn.cohen_kappa_score(true, predicted, weights="quadratic")
    assert found["kappa"] == pytest.approx(kappa)
    assert quadratic_kappa(np.array([1, 1]), np.array([1, 1]), 3) == 0
    [answer] = head.format_predictions(torch.tensor([[5.0, 4.0]]))
    assert answer["label"] == 3
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_an_ordinal_loss_is_the_likelihood() -> None:
    head = ordinal([1, 2, 3])
    outputs = torch.tensor([[2.0, -1.0]])
    p = [
        1 - torch.sigmoid(torch.tensor(2.0)),
        torch.sigmoid(torch.tensor(2.0)) - torch.sigmoid(torch.tensor(-1.0)),
    ]
    for target, wanted in enumerate(p):
        torch.testing.assert_close(head.loss(outputs, torch.tensor([float(target)]))[0], -wanted.log())

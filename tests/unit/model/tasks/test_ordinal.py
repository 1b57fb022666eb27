"""Ordinal classification: likelihoods, thresholds and metrics, compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.ordinal import log_probabilities
from rayfuse.spec.tasks import OrdinalTaskConfig

rng = np.random.default_rng(0)


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
    outputs = (rng.normal(0, 2, (300, 1)) + np.array([1, -1])).astype(np.float32)
    true = rng.integers(0, 3, 300).astype(np.float32)
    predicted = log_probabilities(torch.from_numpy(outputs)).argmax(dim=1).numpy()
    found = head.metrics(outputs, true)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, predicted))
    scores = sklearn.f1_score(true, predicted, average=None)
    assert found["f1_macro"] == pytest.approx(scores.mean())
    per_class = head.details(outputs, true)["per_class"]
    assert [per_class[label]["f1"] for label in ("1", "2", "3")] == pytest.approx(scores.tolist())
    kappa = sklearn.cohen_kappa_score(true, predicted, weights="quadratic")
    assert found["kappa"] == pytest.approx(kappa)
    assert head.metrics(outputs[predicted == 1], np.ones((predicted == 1).sum()))["kappa"] == 0  # undefined
    [prediction] = head.format_predictions(torch.tensor([[5.0, 4.0]]))
    assert prediction["label"] == 3
    assert sum(prediction["scores"].values()) == pytest.approx(1)


def test_an_ordinal_loss_is_the_likelihood() -> None:
    head = ordinal([1, 2, 3])
    outputs = torch.tensor([[2.0, -1.0]])
    p = [
        1 - torch.sigmoid(torch.tensor(2.0)),
        torch.sigmoid(torch.tensor(2.0)) - torch.sigmoid(torch.tensor(-1.0)),
    ]
    for target, wanted in enumerate(p):
        torch.testing.assert_close(head.loss(outputs, torch.tensor([float(target)]))[0], -wanted.log())

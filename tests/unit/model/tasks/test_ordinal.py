"""Ordinal classification: likelihoods and metrics, compared with independent computations."""

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
    a, b, c = above[0].double().sigmoid()
    found = log_probabilities(above)
    wanted = torch.stack([1 - a, a * (1 - b), a * b * (1 - c), a * b * c]).float()
    torch.testing.assert_close(found[0].exp(), wanted)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("classes", [2, 4, 1000])
def test_classes_are_equally_probable_at_first(classes: int) -> None:
    head = ordinal(list(range(classes)))
    outputs = head({"vector": torch.zeros(3, 4), "inputs": {}, "word_starts": {}})
    assert outputs.shape == (3, classes - 1)
    torch.testing.assert_close(
        log_probabilities(outputs).exp(), torch.full((3, classes), 1 / classes), rtol=1e-3, atol=1e-6
    )


def test_other_features_may_separate_the_lowest_than_the_highest_classes() -> None:
    """The first feature separates the lower two of three classes, the second one the upper two."""
    torch.manual_seed(0)
    head, vectors = ordinal([1, 2, 3]), torch.randn(400, 4)
    targets = (vectors[:, 0] > 0) * (1 + (vectors[:, 1] > 0).long())
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(100):
        outputs = head({"vector": vectors, "inputs": {}, "word_starts": {}})
        optimizer.zero_grad()
        head.loss(outputs, targets.float()).mean().backward()
        optimizer.step()
    assert head.metrics(outputs.detach().numpy(), targets.numpy())["accuracy"] > 0.97


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
        torch.sigmoid(torch.tensor(-2.0)),
        torch.sigmoid(torch.tensor(2.0)) * torch.sigmoid(torch.tensor(1.0)),
        torch.sigmoid(torch.tensor(2.0)) * torch.sigmoid(torch.tensor(-1.0)),
    ]
    for target, wanted in enumerate(p):
        torch.testing.assert_close(head.loss(outputs, torch.tensor([float(target)]))[0], -wanted.log())

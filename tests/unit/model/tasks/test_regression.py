"""Regression: loss, predictions and metrics, compared with independent computations."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task
from rayfuse.spec.tasks.regression import REGRESSION_METRICS, RegressionTaskConfig


@pytest.fixture
def regressor() -> Any:
    return build_task(RegressionTaskConfig(type="regression", column="x", mean=100.0, std=20.0), 4)


def test_regression_predictions_and_loss(regressor: Any) -> None:
    torch.nn.init.zeros_(regressor.linear.weight)
    torch.nn.init.constant_(regressor.linear.bias, 0.5)
    outputs = regressor({"vector": torch.zeros(2, 4), "inputs": {}, "word_starts": {}})
    assert regressor.format_predictions(outputs) == [{"value": 110.0}, {"value": 110.0}]
    assert outputs.shape == (2, 1)
    loss = regressor.loss(outputs, torch.tensor([100.0, 50.0]))
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.5**2, 3 - 0.5]))  # Huber, in deviations


def test_regression_metrics(regressor: Any) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(100, 20, 500).astype(np.float32)
    outputs = (true + rng.normal(0, 5, 500)).astype(np.float32)[:, None]
    found = regressor.metrics(outputs, true)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, outputs[:, 0]), rel=1e-5)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(true, outputs[:, 0]), rel=1e-5)
    assert found["pearson"] == pytest.approx(np.corrcoef(true, outputs[:, 0])[0, 1], rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn.r2_score(true, outputs[:, 0]), rel=1e-5)
    assert {"loss", *found} == set(REGRESSION_METRICS)
    assert regressor.details(outputs, true) == {}


def test_regression_metrics_of_large_and_of_constant_targets(regressor: Any) -> None:
    large = np.array([1e30, 3e30], dtype=np.float32)
    assert regressor.metrics(large[:, None], large) == pytest.approx(
        {"mae": 0, "rmse": 0, "r2": 1, "pearson": 1}
    )
    assert np.isfinite(list(regressor.metrics(-large[:, None], large).values())).all()
    assert regressor.metrics(np.array([[1.0], [2.0]]), np.array([3.0, 3.0])) == pytest.approx(
        {"mae": 1.5, "rmse": np.sqrt(2.5), "r2": 0, "pearson": 0}
    )


def test_metrics_are_plain_numbers(regressor: Any) -> None:
    """Ray keeps them as JSON."""
    metrics = regressor.metrics(np.array([[1.0], [2.0]]), np.array([0.0, 1.0], dtype=np.float32))
    assert {type(value) for value in metrics.values()} == {float}

"""Calibration: temperature scaling fitted on validation rows, and calibration errors."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rayfuse.model.tasks.base import TaskHead

NUM_BINS = 15
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_BOUND_TOLERANCE = 1.05
"""A temperature within this factor of a bound is not an optimum, and 1 is used instead."""


class CalibratedHead(TaskHead):
    """A head whose logits are divided by a temperature for predictions: 1 until it is fitted (Guo et al., 2017).

    Losses and raw outputs do not depend on it.
    """

    temperature: torch.Tensor

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__(options, dim)
        self.register_buffer("temperature", torch.ones(()))

    @abstractmethod
    def negative_log_likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        """Compute the mean negative log-likelihood of the targets at a temperature in float64; NaN without targets."""

    @abstractmethod
    def confidence_and_correctness(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted probabilities, float (n,), and whether each prediction is correct, 1 or 0 (n,)."""

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit the temperature to the likelihood of the validation rows."""
        found = fit_temperature(
            lambda temperature: self.negative_log_likelihood(outputs, targets, temperature)
        )
        self.temperature.fill_(found)
        return {"temperature": found}

    def calibration_error(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Compute the expected calibration error."""
        return expected_calibration_error(*self.confidence_and_correctness(outputs, targets))

    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return `temperature`, and `reliability`: see `reliability_table`."""
        table = reliability_table(*self.confidence_and_correctness(outputs, targets))
        return {"temperature": float(self.temperature), "reliability": table}


def fit_temperature(nll: Callable[[float], float]) -> float:
    """Return the temperature that minimizes the mean negative log-likelihood.

    It is 1 if there is no optimum within 0.05 to 20: if all predictions are correct, the likelihood grows without bound
    as the temperature falls.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(nll(1.0)):
        return 1.0
    bounds = (np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE))
    options = {"xatol": 1e-4}
    found = minimize_scalar(lambda x: nll(float(np.exp(x))), bounds=bounds, method="bounded", options=options)
    temperature = float(np.exp(found.x))
    return (
        temperature
        if _MIN_TEMPERATURE * _BOUND_TOLERANCE < temperature < _MAX_TEMPERATURE / _BOUND_TOLERANCE
        else 1.0
    )


def _bin_indices(probabilities: np.ndarray) -> np.ndarray:
    """Return the index of each probability's bin; a bin includes its upper bound."""
    return np.clip(np.ceil(probabilities * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(int)


def expected_calibration_error(probabilities: np.ndarray, correct: np.ndarray) -> float:
    """Compute the expected calibration error (Naeini et al., 2015) over 15 bins of equal width; 0 without rows."""
    if not len(probabilities):
        return 0.0
    gaps = np.bincount(_bin_indices(probabilities), probabilities - correct, NUM_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def reliability_table(probabilities: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return bounds, count, mean probability and fraction of correct predictions of each bin that is not empty."""
    bins = _bin_indices(probabilities)
    return [
        {
            "from": i / NUM_BINS,
            "to": (i + 1) / NUM_BINS,
            "count": int((bins == i).sum()),
            "confidence": float(probabilities[bins == i].mean()),
            "true": float(correct[bins == i].mean()),
        }
        for i in range(NUM_BINS)
        if (bins == i).any()
    ]

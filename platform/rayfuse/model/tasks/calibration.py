"""Calibration: temperature scaling fitted on validation rows, and calibration errors."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rayfuse.model.tasks.base import TaskHead

NUM_BINS = 15
_MAX_FITTED_VALUES = 2**22
"""Raw outputs from which a temperature is fitted: one number does not need those of all rows and classes."""
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_BOUND_TOLERANCE = 1.05
"""A temperature within this factor of a bound is not an optimum, and 1 is used instead."""


class CalibratedHead(TaskHead):
    """A head whose logits are divided by a temperature for predictions: 1 until it is fitted (Guo et al., 2017).

    Losses and raw outputs do not depend on it.
    """

    temperature: torch.Tensor
    output_size: int
    """Numbers in the raw outputs of a sample."""

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

    @property
    def calibration_rows(self) -> int:
        return max(1, _MAX_FITTED_VALUES // self.output_size)

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit the temperature to the likelihood of validation rows."""
        found = fit_temperature(
            lambda temperature: self.negative_log_likelihood(outputs, targets, temperature)
        )
        self.temperature.fill_(found)
        return {"temperature": found}

    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> "Reliability":
        """Return the reliability of the predictions of a batch."""
        found = Reliability()
        found.add(*self.confidence_and_correctness(outputs, targets))
        return found

    def calibration_details(self, reliability: "Reliability") -> dict[str, Any]:
        """Return `temperature`, and `reliability`: see `Reliability.table`."""
        return {"temperature": float(self.temperature), "reliability": reliability.table()}


class Reliability:
    """Number of predictions, sum of their probabilities and number of correct ones in 15 bins of equal width."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, NUM_BINS))

    def add(self, probabilities: np.ndarray, correct: np.ndarray) -> None:
        """Add predictions: probabilities float (n,), and which are correct, 1 or 0 (n,). A bin includes its upper bound."""
        bins = np.clip(np.ceil(probabilities * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(int)
        weights = (None, probabilities, correct)
        self._sums += np.stack([np.bincount(bins, each, NUM_BINS) for each in weights])

    def merge(self, other: "Reliability") -> None:
        """Add the predictions of another."""
        self._sums += other._sums

    def error(self) -> float:
        """Compute the expected calibration error (Naeini et al., 2015); 0 without predictions."""
        counts, confidence, correct = self._sums
        return float(np.abs(confidence - correct).sum() / max(1.0, counts.sum()))

    def table(self) -> list[dict[str, float]]:
        """Return bounds, count, mean probability and fraction of correct predictions of each bin that is not empty."""
        return [
            {
                "from": i / NUM_BINS,
                "to": (i + 1) / NUM_BINS,
                "count": int(count),
                "confidence": float(confidence / count),
                "true": float(correct / count),
            }
            for i, (count, confidence, correct) in enumerate(self._sums.T)
            if count
        ]


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

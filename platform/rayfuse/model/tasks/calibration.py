"""Probabilities that can be believed: a temperature fitted on validation rows, and how far off they are."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rayfuse.model.tasks.base import TaskHead

BINS = 15
_COLDEST, _HOTTEST = 0.05, 20.0
_EDGE = 1.05
"""A temperature this near to a bound was not found but only kept from running away."""


class CalibratedHead(TaskHead):
    """A head whose logits are divided by a temperature when it answers: 1 until it is fitted (Guo et al., 2017).

    Losses and raw outputs know nothing of it.
    """

    temperature: torch.Tensor

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__(options, dim)
        self.register_buffer("temperature", torch.ones(()))

    @abstractmethod
    def likelihood(self, outputs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
        """Mean negative log-likelihood of the targets at a temperature, in float64; NaN where there are none."""

    @abstractmethod
    def judged(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities that were given, and 1 or 0 for whether each was about something true: float (any,)."""

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit the temperature to the likelihood of validation rows."""
        found = fit_temperature(lambda temperature: self.likelihood(outputs, targets, temperature))
        self.temperature.fill_(found)
        return {"temperature": found}

    def error(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """The expected calibration error."""
        return expected_error(*self.judged(outputs, targets))

    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`temperature`, and `reliability`: for each bin of probability that occurs what was said and what was true."""
        table = reliability_table(*self.judged(outputs, targets))
        return {"temperature": float(self.temperature), "reliability": table}


def fit_temperature(likelihood: Callable[[float], float]) -> float:
    """The temperature of the least mean negative log-likelihood.

    1 where the rows set it no bound: where all answers are right, the likelihood only grows as it falls.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(likelihood(1.0)):
        return 1.0
    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    options = {"xatol": 1e-4}
    found = minimize_scalar(
        lambda x: likelihood(float(np.exp(x))), bounds=bounds, method="bounded", options=options
    )
    temperature = float(np.exp(found.x))
    return temperature if _COLDEST * _EDGE < temperature < _HOTTEST / _EDGE else 1.0


def _bins(probabilities: np.ndarray) -> np.ndarray:
    """The number of each one's bin; a bin holds its upper end."""
    return np.clip(np.ceil(probabilities * BINS) - 1, 0, BINS - 1).astype(int)


def expected_error(probabilities: np.ndarray, true: np.ndarray) -> float:
    """How far probability and truth are apart, the mean over 15 bins of equal width by how many fall into each.

    The expected calibration error (Naeini et al., 2015). 0 where there is nothing to judge.
    """
    if not len(probabilities):
        return 0.0
    gaps = np.bincount(_bins(probabilities), probabilities - true, BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def reliability_table(probabilities: np.ndarray, true: np.ndarray) -> list[dict[str, float]]:
    """For each bin that occurs: its bounds, how many fall into it, their mean probability, and what share is true."""
    bins = _bins(probabilities)
    return [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "count": int((bins == i).sum()),
            "confidence": float(probabilities[bins == i].mean()),
            "true": float(true[bins == i].mean()),
        }
        for i in range(BINS)
        if (bins == i).any()
    ]

"""Streaming estimates of the center and scale of numbers that need not fit into memory."""

from abc import ABC, abstractmethod

import numpy as np

_MAX_SAMPLES = 100_000
_RELATIVE_TOLERANCE = 1e-9  # a spread below this fraction of the magnitude counts as 0


class ScalerFitter(ABC):
    """Incremental fit of a center and a scale."""

    count = 0
    """Number of values so far."""

    @abstractmethod
    def partial_fit(self, numbers: np.ndarray) -> None:
        """Add numbers, float64 (n,), all finite."""

    @abstractmethod
    def center_and_scale(self) -> tuple[float, float]:
        """Return the center and the scale, which is never 0."""


class StandardFitter(ScalerFitter):
    """Mean and standard deviation (Chan et al., 1983); the scale is 1 if all numbers are equal."""

    def __init__(self) -> None:
        self._mean = self._sum_squares = self._max_abs = 0.0

    def partial_fit(self, numbers: np.ndarray) -> None:
        if not len(numbers):
            return
        total = self.count + len(numbers)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers above 1e150 overflow when squared
            mean = numbers.mean()
            apart = mean - self._mean
            self._sum_squares += float(((numbers - mean) ** 2).sum())
            self._sum_squares += float(apart * apart * self.count * len(numbers) / total)
            self._mean += float(apart * len(numbers) / total)
        self._max_abs = max(self._max_abs, float(np.abs(numbers).max()))
        self.count = total

    def center_and_scale(self) -> tuple[float, float]:
        deviation = float(np.sqrt(self._sum_squares / self.count))
        return self._mean, deviation if deviation > _RELATIVE_TOLERANCE * max(1.0, self._max_abs) else 1.0


class RobustFitter(ScalerFitter):
    """Median, and interquartile range / 1.349, which equals the standard deviation of a normal distribution.

    The scale is the standard deviation if more than half of the numbers are equal, and 1 if all are. More than 100 000
    numbers are sampled at random, with a fixed seed; the standard error of the median is then 0.4% of the standard
    deviation of normal numbers.
    """

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._sample, self._keys = np.empty(0), np.empty(0)
        self._pending: list[np.ndarray] = []
        self._standard = StandardFitter()

    @property
    def count(self) -> int:  # type: ignore[override]
        """Number of values added."""
        return self._standard.count

    def partial_fit(self, numbers: np.ndarray) -> None:
        self._standard.partial_fit(numbers)
        self._pending.append(numbers)
        if sum(map(len, self._pending)) > _MAX_SAMPLES or len(self._pending) > _MAX_SAMPLES // 100:
            self._subsample()

    def center_and_scale(self) -> tuple[float, float]:
        self._subsample()
        low, middle, high = np.percentile(self._sample, (25, 50, 75))
        deviation = (high - low) / 1.349
        fits = deviation > _RELATIVE_TOLERANCE * max(1.0, abs(middle))
        return float(middle), float(deviation) if fits else self._standard.center_and_scale()[1]

    def _subsample(self) -> None:
        numbers = np.concatenate([self._sample, *self._pending])
        keys = np.concatenate([self._keys, self._rng.random(len(numbers) - len(self._sample))])
        self._pending.clear()
        if len(numbers) > _MAX_SAMPLES:
            smallest = np.argpartition(keys, _MAX_SAMPLES)[:_MAX_SAMPLES]
            numbers, keys = numbers[smallest], keys[smallest]
        self._sample, self._keys = numbers, keys

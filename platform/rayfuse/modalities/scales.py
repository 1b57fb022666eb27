"""The middle and the scale of numbers that come in parts and need not fit into memory."""

from abc import ABC, abstractmethod

import numpy as np

_KEPT = 100_000
_SAME = 1e-9  # numbers that differ by so little, for their size, are the same


class Numbers(ABC):
    """Numbers that are told one array after the other."""

    count = 0
    """How many there were."""

    @abstractmethod
    def add(self, numbers: np.ndarray) -> None:
        """Take in some more: float64 (any number,), all finite."""

    @abstractmethod
    def scale(self) -> tuple[float, float]:
        """The middle and the scale, which is never 0."""


class Moments(Numbers):
    """The mean and the standard deviation of all numbers (Chan et al., 1983); 1 where all are the same."""

    def __init__(self) -> None:
        self._mean = self._squares = self._largest = 0.0

    def add(self, numbers: np.ndarray) -> None:
        if not len(numbers):
            return
        whole = self.count + len(numbers)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # of numbers beyond 1e150, which only `robust` can scale
            mean = numbers.mean()
            apart = mean - self._mean
            self._squares += float(((numbers - mean) ** 2).sum())
            self._squares += float(apart * apart * self.count * len(numbers) / whole)
            self._mean += float(apart * len(numbers) / whole)
        self._largest = max(self._largest, float(np.abs(numbers).max()))
        self.count = whole

    def scale(self) -> tuple[float, float]:
        deviation = float(np.sqrt(self._squares / self.count))
        return self._mean, deviation if deviation > _SAME * max(1.0, self._largest) else 1.0


class Sampled(Numbers):
    """The median, and a scale of about the deviation: the interquartile range / 1.349, as of normal numbers.

    Where more than half of the numbers are the same it is their standard deviation, and 1 where all are. Of more than
    100 000 numbers so many are looked at: those that got the smallest random keys, the same in every run. The median is
    then off by a standard error of 0.4% of the deviation of normal numbers.
    """

    def __init__(self) -> None:
        self._chance = np.random.default_rng(0)
        self._numbers, self._keys = np.empty(0), np.empty(0)
        self._waiting: list[np.ndarray] = []
        self._moments = Moments()

    @property
    def count(self) -> int:  # type: ignore[override]
        return self._moments.count

    def add(self, numbers: np.ndarray) -> None:
        self._moments.add(numbers)
        self._waiting.append(numbers)
        if sum(map(len, self._waiting)) > _KEPT or len(self._waiting) > _KEPT // 100:
            self._choose()

    def scale(self) -> tuple[float, float]:
        self._choose()
        low, middle, high = np.percentile(self._numbers, (25, 50, 75))
        deviation = (high - low) / 1.349
        fits = deviation > _SAME * max(1.0, abs(middle))
        return float(middle), float(deviation) if fits else self._moments.scale()[1]

    def _choose(self) -> None:
        numbers = np.concatenate([self._numbers, *self._waiting])
        keys = np.concatenate([self._keys, self._chance.random(len(numbers) - len(self._numbers))])
        self._waiting.clear()
        if len(numbers) > _KEPT:
            smallest = np.argpartition(keys, _KEPT)[:_KEPT]
            numbers, keys = numbers[smallest], keys[smallest]
        self._numbers, self._keys = numbers, keys

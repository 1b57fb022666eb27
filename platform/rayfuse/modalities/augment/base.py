"""Base class of custom augmentations, and functions that the built-in ones share."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from rayfuse.modalities.base import Features


class Augmentation(ABC):
    """A custom augmentation. Built-in ones are functions (options, features, rng) → features.

    options: the class's `Options`, or the mapping of the spec.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def __call__(self, features: Features, rng: np.random.Generator) -> Features:
        """Return changed features of one value, without changing the arrays given; all randomness comes from `rng`."""


def add_gaussian_noise(array: np.ndarray, sigma: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Return an array with Gaussian noise.

    sigma: the range from which its standard deviation is drawn, in standard deviations of the array.
    """
    deviation = rng.uniform(*sigma) * float(array.std())
    noise = rng.standard_normal(array.shape, dtype=np.float32)
    return array + np.float32(deviation) * noise


def random_span(length: int, max_fraction: float, rng: np.random.Generator) -> slice:
    """Return a random slice of `length` positions, at most the fraction `max_fraction` of them; it may be empty."""
    size = round(rng.uniform(0, max_fraction) * length)
    start = int(rng.integers(0, length - size + 1))
    return slice(start, start + size)

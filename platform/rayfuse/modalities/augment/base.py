"""What the random changes of all kinds of inputs share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rayfuse.modalities.base import Features

Change = Callable[[Any, Features, np.random.Generator], Features]
"""(options, features, chance) → new features; all that is random in it comes from `chance`."""


def with_noise(array: np.ndarray, sigma: tuple[float, float], chance: np.random.Generator) -> np.ndarray:
    """An array with Gaussian noise whose deviation is drawn from `sigma`, in deviations of the array."""
    deviation = chance.uniform(*sigma) * float(array.std())
    noise = chance.standard_normal(array.shape, dtype=np.float32)
    return array + np.float32(deviation) * noise


def block(length: int, longest: float, chance: np.random.Generator) -> slice:
    """A part of `length` places, at most the share `longest` of them; it may be empty."""
    size = round(chance.uniform(0, longest) * length)
    start = int(chance.integers(0, length - size + 1))
    return slice(start, start + size)

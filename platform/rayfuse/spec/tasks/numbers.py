"""Conversion of values of rows to numbers."""

import hashlib
import math
from decimal import Decimal
from typing import Any

from rayfuse.spec.tasks.classes import normalize_label

_FLOAT32_MAX = 3.4e38


def to_finite_float(value: Any) -> float | None:
    """Return a value as a finite number in the range of float32; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if abs(number) <= _FLOAT32_MAX else None


class RunningMoments:
    """Count, mean and standard deviation of a stream of numbers (Welford, 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._sum_squares = 0.0

    def add(self, number: float) -> None:
        """Add a finite number."""
        self.count += 1
        deviation = number - self.mean
        self.mean += deviation / self.count
        self._sum_squares += deviation * (number - self.mean)

    @property
    def std(self) -> float:
        """Population standard deviation; 0 without numbers."""
        return math.sqrt(self._sum_squares / self.count) if self.count else 0.0


def hash_to_floats(value: Any) -> list[float]:
    """Return a hash of a value as two numbers: the same in every process, and each exact in float32.

    The hash has 48 bits: among a million values, the probability of a collision is 0.2%.
    """
    digest = hashlib.blake2b(
        str(normalize_label(value)).encode("utf-8", "surrogatepass"), digest_size=6
    ).digest()
    return [float(int.from_bytes(digest[:3])), float(int.from_bytes(digest[3:]))]

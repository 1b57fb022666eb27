"""Numbers, and groups that are told by numbers."""

import hashlib
import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rayfuse.spec.tasks.classes import normal

_LARGEST = 3.4e38  # what float32 holds


def finite(value: Any) -> float | None:
    """A finite number that float32 can hold, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if abs(number) <= _LARGEST else None


def mean_and_deviation(numbers: Iterable[float]) -> tuple[int, float, float]:
    """How many numbers there are, their mean and their standard deviation, in one pass (Welford, 1962)."""
    count, mean, squares = 0, 0.0, 0.0
    for count, number in enumerate(numbers, start=1):
        apart = number - mean
        mean += apart / count
        squares += apart * (number - mean)
    return count, mean, math.sqrt(squares / count) if count else 0.0


def group_numbers(value: Any) -> list[float]:
    """Two numbers that stand for a value: the same in every process, and each exact in float32.

    48 bits of a hash: that any two of a million values are taken for one has a chance of 0.2%.
    """
    digest = hashlib.blake2b(str(normal(value)).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return [float(int.from_bytes(digest[:3])), float(int.from_bytes(digest[3:]))]

"""A limit on the memory that decoding one value takes, checked with what its headers state before it is decoded.

Small files can be large in memory: decompression bombs. In training they are invalid rows, over HTTP a 4xx response.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rayfuse.errors import InvalidInputError
from rayfuse.formatting import format_bytes


@dataclass
class DecodeMemory:
    """The limit of this process."""

    max_bytes: int = 1_000_000_000
    """Largest estimated memory of one value."""
    on_reserve: Callable[[int], None] | None = None
    """Called with the estimated bytes of each value before it is decoded."""


LIMIT = DecodeMemory()
"""The limit of this process; one that decodes the files of an endpoint has a lower one."""


def reserve(num_bytes: int, value: str) -> None:
    """Check the memory that decoding a value is going to take; `value` describes it, as in "an image of 900 × 900 pixels".

    Raises InvalidInputError if it is above the limit.
    """
    if num_bytes > LIMIT.max_bytes:
        raise InvalidInputError(
            f"{value} takes {format_bytes(num_bytes)} of memory to decode; the maximum is "
            f"{format_bytes(LIMIT.max_bytes)}; send a smaller one"
        )
    if LIMIT.on_reserve is not None:
        LIMIT.on_reserve(num_bytes)

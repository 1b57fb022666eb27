"""Budgets of decoding: the CPU time of a request, and the memory of a replica."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rayfuse.errors import InvalidInputError


class CpuBudget:
    """The CPU time that a request may take for its values, of which several are decoded at once."""

    def __init__(self, seconds: float, parallel: int = 1) -> None:
        self.seconds = self._left = seconds
        self._parallel = parallel
        self._lock = threading.Lock()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Take a share of what is left, and give back what was not used. Raises InvalidInputError if nothing is left."""
        with self._lock:
            share = Share(self._left / self._parallel)
            self._left -= share.seconds
        if share.seconds < self.seconds / 100:
            self._return(share)
            raise self.exceeded()
        try:
            yield share
        finally:
            self._return(share)

    def use(self, seconds: float) -> None:
        """Count time that a value has taken. Raises InvalidInputError if nothing is left."""
        with self._lock:
            self._left -= seconds
        if self._left < 0:
            raise self.exceeded()

    def exceeded(self) -> InvalidInputError:
        """Return the error of a value for which no time is left."""
        return InvalidInputError(
            f"the request takes more than {self.seconds:g} s of CPU time to decode (limits.max_decode_time); send smaller "
            "values, or several requests"
        )

    def _return(self, share: "Share") -> None:
        with self._lock:
            self._left += share.seconds - share.used


class Share:
    """A part of a budget."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """Seconds of CPU time that may be used."""
        self.used = 0.0
        """Seconds that were used."""


class MemoryBudget:
    """Bytes that several threads share; the one that asked first gets them first."""

    def __init__(self, num_bytes: int) -> None:
        self.total = self._left = num_bytes
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Hold bytes, at most all of them, and wait until they are free."""
        wanted = min(num_bytes, self.total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify()

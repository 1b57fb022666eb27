"""Values of a new trial that need less memory than the trials that ran out of it."""

import json
from collections.abc import Callable

from rayfuse.spec.search_space import Values
from rayfuse.tuning.trials import Trials

EstimateMemory = Callable[[Values], int | None]
"""Returns the estimated peak bytes of a worker of the trial with these values; None where it is unknown."""

_MAX_ATTEMPTS = 16


class MemoryLimit:
    """Prefers values whose estimated memory is below that of every trial that ran out of memory."""

    def __init__(self, trials: Trials, estimate: EstimateMemory) -> None:
        self._trials, self._estimate = trials, estimate
        self._estimates: dict[str, int | None] = {}

    def choose(self, draw: Callable[[int], Values]) -> Values:
        """Return the first values of `draw`, called with 0, 1, …, that are below the limit.

        If those of several attempts are all above it, the ones that need the least are returned.
        """
        limit = self._limit()
        drawn = draw(0)
        if limit is None:
            return drawn
        smallest, smallest_bytes = drawn, self._bytes(drawn)
        for attempt in range(1, _MAX_ATTEMPTS):
            if smallest_bytes is None or smallest_bytes < limit:
                break
            drawn = draw(attempt)
            drawn_bytes = self._bytes(drawn)
            if drawn_bytes is None or drawn_bytes < smallest_bytes:
                smallest, smallest_bytes = drawn, drawn_bytes
        return smallest

    def _limit(self) -> int | None:
        """Return the least bytes of a trial that ran out of memory; None if there is none."""
        found = [self._bytes(trial.values) for trial in self._trials if trial.out_of_memory]
        return min((each for each in found if each is not None), default=None)

    def _bytes(self, values: Values) -> int | None:
        key = json.dumps(values, sort_keys=True)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(values)
        return self._estimates[key]

"""Early stopping: a decision from the metrics so far, the same on every rank."""

from collections.abc import Sequence

from rayfuse.spec.tasks import Mode


def best_epoch(values: Sequence[float], mode: Mode) -> int:
    """Index of the best value, the first of equals; NaN is never best."""
    sign = 1 if mode == "max" else -1
    scored = [sign * value if value == value else float("-inf") for value in values]
    return scored.index(max(scored))


def should_stop(values: Sequence[float], mode: Mode, patience: int) -> bool:
    """Whether the last `patience` epochs brought no value better than the best before them."""
    return len(values) - 1 - best_epoch(values, mode) >= patience

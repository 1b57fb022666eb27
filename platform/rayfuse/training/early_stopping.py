"""Early stopping on a validation metric."""

from collections.abc import Sequence

from rayfuse.spec.tasks import Mode


def best_epoch(values: Sequence[float], mode: Mode) -> int:
    """Return the index of the best value, the first of equal ones; NaN counts as the worst."""
    sign = 1 if mode == "max" else -1
    scored = [sign * value if value == value else float("-inf") for value in values]
    return scored.index(max(scored))


def should_stop(values: Sequence[float], mode: Mode, patience: int) -> bool:
    """Return whether the last `patience` epochs have no better value than the best before them."""
    return len(values) - 1 - best_epoch(values, mode) >= patience

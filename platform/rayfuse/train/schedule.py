"""Learning rate as a function of the step alone, so that a resumed run continues exactly."""

from collections.abc import Callable
from math import cos, pi, sqrt

from rayfuse.spec.schedules import WSD, Constant, Schedule

_FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda way: 0.5 * (1 + cos(pi * way)),
    "linear": lambda way: 1 - way,
    "sqrt": lambda way: 1 - sqrt(way),
}
"""From 1 to 0 over a way from 0 to 1."""


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """Factor of the learning rate at `step` of `total` optimizer steps, both from 0."""
    warmup = schedule.warmup if isinstance(schedule.warmup, int) else schedule.warmup * total
    if step < warmup:
        return float((step + 1) / (warmup + 1))
    if isinstance(schedule, Constant):
        return 1.0
    if isinstance(schedule, WSD):
        start, form = max(warmup, total - schedule.decay * total), schedule.form
    else:
        start, form = warmup, schedule.type
    way = min(1.0, max(0.0, step - start) / max(1.0, total - start))
    return schedule.min + (1 - schedule.min) * _FALLS[form](way)

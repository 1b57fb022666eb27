"""Learning rate as a function of the step alone, so that a resumed run continues exactly."""

from math import cos, pi

from rayfuse.spec.train import Schedule


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """Factor of the learning rate at `step` of `total` optimizer steps, both from 0."""
    warmup = schedule.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.type == "constant":
        return 1.0
    return 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

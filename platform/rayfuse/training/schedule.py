"""Learning rate schedules: functions of the step alone, so that a resumed run continues exactly."""

from abc import ABC, abstractmethod
from math import cos, pi, sqrt
from typing import Any

from rayfuse.spec.schedules import (
    SCHEDULES,
    DecayScheduleConfig,
    ScheduleConfig,
    WSDScheduleConfig,
)


class Schedule(ABC):
    """The learning rate after the warm-up.

    options: the spec model of a built-in schedule; the `Options` of a custom one, or the mapping of the spec. An instance
    is made for every step, so that the rate depends on nothing else.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        """Return the factor of the learning rate at `step`, from 0 and at least `warmup_steps`, of `total_steps`."""


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the factor of the learning rate at `step`, from 0, of `total_steps` optimizer steps.

    It rises linearly in the warm-up, and then follows the schedule.
    """
    warmup = schedule.warmup if isinstance(schedule.warmup, int) else schedule.warmup * total_steps
    if step < warmup:
        return float((step + 1) / (warmup + 1))
    built: Schedule = SCHEDULES.build(schedule)
    return built.factor(step, total_steps, warmup)


class Constant(Schedule):
    """No decay."""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return 1.0


class Decay(Schedule):
    """A decay over all steps after the warm-up."""

    options: DecayScheduleConfig

    @staticmethod
    @abstractmethod
    def shape(progress: float) -> float:
        """Return the factor from 1 to 0 for a progress from 0 to 1."""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        progress = _progress(step, warmup_steps, total_steps)
        return _above_minimum(self.shape(progress), self.options.min_lr_ratio)


class Cosine(Decay):
    """Cosine decay (Loshchilov and Hutter, 2017)."""

    @staticmethod
    def shape(progress: float) -> float:
        return 0.5 * (1 + cos(pi * progress))


class Linear(Decay):
    """Linear decay."""

    @staticmethod
    def shape(progress: float) -> float:
        return 1 - progress


class SquareRoot(Decay):
    """Decay with one minus the root of the progress (Hägele et al., 2024)."""

    @staticmethod
    def shape(progress: float) -> float:
        return 1 - sqrt(progress)


class WarmupStableDecay(Schedule):
    """Constant, with a decay in the last steps (Hu et al., 2024)."""

    options: WSDScheduleConfig

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        shapes: dict[str, type[Decay]] = {"cosine": Cosine, "linear": Linear, "sqrt": SquareRoot}
        start = max(warmup_steps, total_steps - self.options.decay_ratio * total_steps)
        factor = shapes[self.options.decay_shape].shape(_progress(step, start, total_steps))
        return _above_minimum(factor, self.options.min_lr_ratio)


def _progress(step: int, start: float, end: int) -> float:
    """Return the fraction of the steps from `start` to `end` that are done."""
    return min(1.0, max(0.0, step - start) / max(1.0, end - start))


def _above_minimum(factor: float, minimum: float) -> float:
    return minimum + (1 - minimum) * factor

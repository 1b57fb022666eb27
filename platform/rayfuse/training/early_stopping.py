"""The end of training before its last epoch: early stopping on a validation metric, and a time budget."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rayfuse.formatting import plural
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Mode
from rayfuse.training.distributed import DistributedContext


def best_epoch(values: Sequence[float], mode: Mode) -> int:
    """Return the index of the best value, the first of equal ones; NaN counts as the worst."""
    sign = 1 if mode == "max" else -1
    scored = [sign * value if value == value else float("-inf") for value in values]
    return scored.index(max(scored))


def should_stop(values: Sequence[float], mode: Mode, patience: int) -> bool:
    """Return whether the last `patience` epochs have no better value than the best before them."""
    return len(values) - 1 - best_epoch(values, mode) >= patience


@dataclass(frozen=True)
class EpochSelection:
    """The epoch of a run whose weights are used, and why its training ended."""

    selection_metric: str
    """Validation metric that selected the best epoch."""
    best_epoch: int
    """Epoch whose weights are used, from 1: the best, or the last with `load_best_model_at_end: false`."""
    epochs: int
    """Number of epochs that were trained."""
    stop_reason: str
    """Why training ended: all epochs are done, early stopping, or the time budget."""
    value: float
    """Value of the metric in that epoch."""
    is_best: bool = True
    """True if the metric selected the epoch."""

    @classmethod
    def of(cls, job: Job, history: Sequence[Mapping[str, float]]) -> "EpochSelection":
        """Return the selection for the validation metrics of each epoch."""
        metric = job.selection_metric
        values = [metrics[metric] for metrics in history]
        is_best = job.train.load_best_model_at_end
        used = best_epoch(values, job.metric_modes()[metric]) if is_best else len(values) - 1
        return cls(metric, used + 1, len(history), _stop_reason(job, values), values[used], is_best)

    def __str__(self) -> str:
        metric = f"validation {self.selection_metric} {self.value:.4f}"
        used = f"best epoch: {self.best_epoch} of {self.epochs}, by {metric}"
        if not self.is_best:
            used = f"last of {self.epochs} epochs used, with {metric}"
        return f"{used}; training ended: {self.stop_reason}"


def _stop_reason(job: Job, values: Sequence[float]) -> str:
    """Return why training ended after the epochs whose values of the selection metric are `values`."""
    if len(values) >= job.train.epochs:
        return "all epochs are done"
    stopping = job.train.early_stopping
    if stopping and should_stop(values, job.metric_modes()[stopping.metric], stopping.patience):
        return f"early stopping: no better {stopping.metric} in {plural(stopping.patience, 'epoch')}"
    return f"time budget: another epoch would exceed train.time_budget, {job.train.time_budget:g} s"


class TimeBudget:
    """Decision after each epoch whether another one fits in the time budget, the same on every rank.

    The time of rank 0 decides, and an epoch is expected to take as long as those before it on average.
    """

    def __init__(
        self, limit: float | None, context: DistributedContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit` is in seconds; None: every epoch fits."""
        self._limit, self._context, self._clock = limit, context, clock
        self._started = clock()

    def start(self, spent: float) -> None:
        """Begin to count, after the seconds `spent` before a resume."""
        self._started = self._clock() - spent

    @property
    def spent(self) -> float:
        """Seconds of training, over all resumes."""
        return self._clock() - self._started

    def allows_epoch(self, epochs_done: int) -> bool:
        """Return whether an epoch after the `epochs_done`, at least one, fits. Every rank must call it."""
        if self._limit is None:
            return True
        expected = self.spent * (epochs_done + 1) / epochs_done
        return self._context.broadcast(expected <= self._limit)

"""Decide when to save a checkpoint inside an epoch: on rank 0's clock, every N steps, before a preemption or an end."""

import time
from collections.abc import Callable

import torch

from rayfuse.spec.checkpointing import CheckpointingConfig
from rayfuse.training.distributed import DistributedContext

_SYNC_INTERVAL_SECONDS = 1.0


class StopRequested(Exception):
    """The driver wants the workers to end; a checkpoint is saved."""


class CheckpointTrigger:
    """Decision after each step whether to save, the same on every rank. Every rank must call it after every step.

    Ranks synchronize about once a second, so that a step does not cost a collective.
    """

    def __init__(
        self,
        options: CheckpointingConfig,
        context: DistributedContext,
        is_preempted: Callable[[], bool] = lambda: False,
        is_stop_requested: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_preempted` returns whether a node of this run is about to be taken away; it may be a collective.

        `is_stop_requested` returns, on rank 0, whether the driver wants the run to end.
        """
        self._options, self._context = options, context
        self._is_stop_requested = is_stop_requested
        self.must_stop = False
        """True if training ends after the checkpoint, the same on every rank."""
        self._is_preempted, self._clock = is_preempted, clock
        self._preemption_pending = False
        self._last_save = self._last_sync = clock()
        self._steps_since_sync = 0
        self._steps_until_sync = 1

    def should_save(self, step: int) -> bool:
        """Return whether to save after optimizer step `step`, counted from 1."""
        self._steps_since_sync += 1
        by_steps = self._options.every_n_steps is not None and step % self._options.every_n_steps == 0
        return (self._steps_since_sync >= self._steps_until_sync and self._sync()) or by_steps

    def mark_saved(self) -> None:
        """Restart the interval: a checkpoint is being written, or training begins."""
        self._last_save = self._clock()

    def _sync(self) -> bool:
        now = self._clock()
        seconds_per_step = max(1e-6, (now - self._last_sync) / self._steps_since_sync)
        interval = self._options.interval
        is_due = interval is not None and now - self._last_save >= interval
        decision = torch.tensor(
            [
                is_due,
                max(1, round(_SYNC_INTERVAL_SECONDS / seconds_per_step)),
                self._context.is_main and self._is_stop_requested(),
            ],
            device=self._context.device,
        )
        self._context.broadcast_(decision)
        self.must_stop = bool(decision[2])
        self._last_sync, self._steps_since_sync, self._steps_until_sync = now, 0, int(decision[1])
        return bool(decision[0]) or self.must_stop or self._check_preemption()

    def _check_preemption(self) -> bool:
        """Return whether a preemption notice is new since the last check."""
        pending_before, self._preemption_pending = self._preemption_pending, self._is_preempted()
        return self._preemption_pending and not pending_before

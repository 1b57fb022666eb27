"""What all ranks do besides stepping, at the same step: rank 0's clock decides, and the others hear of it in time."""

import time
from collections.abc import Callable

import torch

from rayfuse.spec.checkpointing import Checkpointing

_SECONDS_BETWEEN_LOOKS = 1.0


class Agenda:
    """Says after each step whether to save now. Every rank must ask after every step.

    Ranks meet about once a second, so that a step costs no collective of its own. `preempted` is a collective
    too: whether a node of this run is about to go away (Ray Train's notice).
    """

    warned = False
    """Whether a node of this run was about to go away at the last look."""

    def __init__(
        self,
        options: Checkpointing,
        rank: int,
        world: int,
        device: torch.device,
        preempted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self.rank, self.world, self.device = options, rank, world, device
        self._preempted, self._clock = preempted, clock
        self._saved = self._looked = clock()
        self._steps = 0
        self._next = 1

    def due(self, step: int) -> bool:
        """Whether to save after optimizer step `step`, counted from 1: the same on every rank."""
        self._steps += 1
        by_steps = self.options.steps is not None and step % self.options.steps == 0
        return (self._steps >= self._next and self._look()) or by_steps

    def saved(self) -> None:
        """Note that a checkpoint is being written, whoever wanted it."""
        self._saved = self._clock()

    def _look(self) -> bool:
        now = self._clock()
        each = max(1e-6, (now - self._looked) / self._steps)
        late = self.options.every is not None and now - self._saved >= self.options.every
        word = torch.tensor([late, max(1, round(_SECONDS_BETWEEN_LOOKS / each))], device=self.device)
        if self.world > 1:
            torch.distributed.broadcast(word, src=0)
        self._looked, self._steps, self._next = now, 0, int(word[1])
        return bool(word[0]) or self._notice()

    def _notice(self) -> bool:
        """Whether a notice came that was not there at the last look."""
        if not self._preempted():
            self.warned = False
            return False
        self.warned, before = True, self.warned
        return not before

"""What every optimizer step measures on each worker, brought together without making a GPU wait.

A worker hands in a step's numbers and gets those of the step before, over all workers: by then they have arrived, so
that nothing waits for them. Every worker must hand in every step.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.spec.job import Job

_LENGTHS = ("attention_mask", "item_mask", "step_mask", "frame_mask")
"""Features that say which tokens, items, steps or frames of a value are no padding."""
_NO_NORM = -1.0


@dataclass(frozen=True)
class Place:
    """Where a step stands."""

    epoch: int
    """Counted from 0."""
    number: int
    """Within the epoch, counted from 0."""
    step: int
    """Optimizer steps done with it."""
    lr: float


@dataclass(frozen=True)
class Measured:
    """One optimizer step over all workers."""

    place: Place
    time: float
    """When rank 0 had handed its work out, on the clock of time.perf_counter."""
    loss: float
    """Mean over the rows."""
    parts: Mapping[str, float]
    """What the loss is made of, by name, as means over the rows."""
    losses: tuple[float, ...]
    """Each rank's sum over its own rows."""
    gradient_norm: float | None
    rows: int
    tokens: Mapping[str, tuple[int, int]]
    """Of each input whose values have a length: what encoders read without and with padding, equal values once."""
    waited: float
    """Seconds for which the slowest rank waited for its rows."""

    @property
    def suspects(self) -> list[int]:
        """The ranks whose loss is no finite number; all of them where each has one."""
        ranks = range(len(self.losses))
        return [rank for rank in ranks if not math.isfinite(self.losses[rank])] or list(ranks)


class Meter:
    """Brings the numbers of a step together."""

    def __init__(self, job: Job, device: torch.device, world: int = 1) -> None:
        self._inputs = list(job.inputs)
        self._parts = [
            *job.tasks,
            *(f"align/{options.type}" for options in job.align.loss),
            *(f"distill/{name}" for name in job.tasks if job.train.distill),
        ]
        self._device, self._world = device, world
        self._pending: tuple[Place, float, _Reading] | None = None

    def put(
        self,
        place: Place,
        batches: Sequence[Batch],
        loss: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
        gradient_norm: torch.Tensor | float | None,
        waited: float,
    ) -> Measured | None:
        """Hand in a step; returns the one before it, None for the first.

        `loss` and `parts`: sums over this rank's rows, on its device; `gradient_norm`: over all ranks; `waited`:
        seconds for the step's rows.
        """
        counts = [count for name in self._inputs for count in _tokens(batches, name)]
        rows = sum(int(batch.whole.sum()) for batch in batches)
        known = torch.tensor([rows, waited, *counts], dtype=torch.float64)
        norm = torch.as_tensor(_NO_NORM if gradient_norm is None else gradient_norm)
        computed = [loss, norm, *(parts.get(name, torch.zeros_like(loss)) for name in self._parts)]
        # Copies to a GPU that are not asked to be non-blocking wait for all that it has to do.
        moved = [part.to(self._device, torch.float64, non_blocking=True) for part in computed]
        mine = torch.cat(
            [torch.stack([part.reshape(()) for part in moved]), known.to(self._device, non_blocking=True)]
        )
        before = self._take()
        self._pending = (place, time.perf_counter(), _Reading(mine, self._world))
        return before

    def flush(self) -> Measured | None:
        """The last step that was handed in, at the end of an epoch or before a checkpoint; None if it was taken."""
        return self._take()

    def _take(self) -> Measured | None:
        if self._pending is None:
            return None
        place, when, reading = self._pending
        self._pending = None
        return self._measured(place, when, reading.read())

    def _measured(self, place: Place, when: float, ranks: list[list[float]]) -> Measured:
        sums = [sum(column) for column in zip(*ranks, strict=True)]
        split = 2 + len(self._parts)
        rows, counts = sums[split], sums[split + 2 :]
        return Measured(
            place=place,
            time=when,
            loss=sums[0] / rows,
            parts={name: value / rows for name, value in zip(self._parts, sums[2:split], strict=True)},
            losses=tuple(rank[0] for rank in ranks),
            gradient_norm=None if ranks[0][1] == _NO_NORM else ranks[0][1],
            rows=int(rows),
            tokens={
                name: (int(real), int(padded))
                for name, real, padded in zip(self._inputs, counts[::2], counts[1::2], strict=True)
                if padded
            },
            waited=max(rank[split + 1] for rank in ranks),
        )


class _Reading:
    """A rank's numbers on their way to all ranks, and from a GPU to the host."""

    def __init__(self, mine: torch.Tensor, world: int) -> None:
        self._table, self._work = mine.unsqueeze(0), None
        self._copied: torch.cuda.Event | None = None
        if world > 1:
            together = mine.new_empty(world * len(mine))
            self._work = torch.distributed.all_gather_single(together, mine, async_op=True)
            self._table = together.view(world, len(mine))
        if mine.is_cuda:
            self._to_host()

    def _to_host(self) -> None:
        """Only what is queued so far is waited for in `read`, not what the next step adds to the queue."""
        if self._work is not None:
            self._work.wait()  # with NCCL the stream waits, not the host
            self._work = None
        host = torch.empty(self._table.shape, dtype=self._table.dtype, pin_memory=True)
        self._table = host.copy_(self._table, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def read(self) -> list[list[float]]:
        if self._work is not None:
            self._work.wait()
        if self._copied is not None:
            self._copied.synchronize()
        return self._table.tolist()


def _tokens(batches: Sequence[Batch], name: str) -> tuple[int, int]:
    found = [_tokens_read(batch.inputs[name]) for batch in batches]
    return sum(real for real, _ in found), sum(padded for _, padded in found)


def _tokens_read(part: EncoderBatch) -> tuple[int, int]:
    """What an encoder reads of an input, without and with padding; 0 of a blank value that only keeps ranks in step."""
    if part.features is None or not bool((part.index >= 0).any()):
        return 0, 0
    masks = [mask for name, mask in part.features.items() if name in _LENGTHS]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

"""Metrics of each optimizer step, reduced over all workers without synchronizing the GPU.

A worker passes in the numbers of a step and gets the reduced metrics of the step before, which have arrived by then.
Every worker must pass in every step.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.modalities import build_modality
from rayfuse.model.outputs import loss_metric_names
from rayfuse.spec.job import Job

_NO_NORM = -1.0


@dataclass(frozen=True)
class StepPosition:
    """Position of a step in a run."""

    epoch: int
    """Index of the epoch, from 0."""
    step_in_epoch: int
    """Index within the epoch, from 0."""
    step: int
    """Number of optimizer steps of the run up to and including this one."""
    lr: float
    """Learning rate."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step over all workers."""

    position: StepPosition
    """Epoch, step and learning rate."""
    time: float
    """Time at which this rank had launched the step, on the clock of time.perf_counter."""
    loss: float
    """Mean over the rows."""
    loss_terms: Mapping[str, float]
    """Terms of the loss by name, as means over the rows."""
    rank_losses: tuple[float, ...]
    """Sum of the loss over each rank's rows."""
    gradient_norm: float | None
    """Norm of the gradient before clipping; None if it is not computed."""
    rows: int
    """Number of rows, without input subsets of rows."""
    tokens: Mapping[str, tuple[int, int]]
    """Steps that encoders read without and with padding, by input; equal values count once."""
    data_wait_seconds: float
    """Longest time that a rank waited for its rows."""

    @property
    def suspect_ranks(self) -> list[int]:
        """Ranks whose loss is NaN or infinite; all ranks if every loss is finite."""
        ranks = range(len(self.rank_losses))
        return [rank for rank in ranks if not math.isfinite(self.rank_losses[rank])] or list(ranks)


class MetricReducer:
    """Reduce the numbers of each step over all workers, one step behind."""

    def __init__(self, job: Job, device: torch.device, world_size: int = 1) -> None:
        self._length_masks = {
            name: build_modality(options).length_mask for name, options in job.inputs.items()
        }
        self._loss_terms = loss_metric_names(job)
        self._device, self._world = device, world_size
        self._pending: tuple[StepPosition, float, _AsyncGather] | None = None

    def update(
        self,
        position: StepPosition,
        batches: Sequence[Batch],
        loss: torch.Tensor,
        loss_terms: Mapping[str, torch.Tensor],
        gradient_norm: torch.Tensor | float | None,
        data_wait_seconds: float,
    ) -> StepMetrics | None:
        """Pass in a step; returns the metrics of the step before, None for the first.

        `loss` and `loss_terms`: sums over this rank's rows, on its device; `gradient_norm`: over all ranks;
        `data_wait_seconds`: time that this rank waited for the step's rows.
        """
        counts = [n for name, mask in self._length_masks.items() for n in _count_tokens(batches, name, mask)]
        rows = sum(int(batch.is_full.sum()) for batch in batches)
        known = torch.tensor([rows, data_wait_seconds, *counts], dtype=torch.float64)
        norm = torch.as_tensor(_NO_NORM if gradient_norm is None else gradient_norm)
        computed = [loss, norm, *(loss_terms.get(name, torch.zeros_like(loss)) for name in self._loss_terms)]
        # Blocking copies to a GPU would wait for its queue.
        moved = [part.to(self._device, torch.float64, non_blocking=True) for part in computed]
        mine = torch.cat(
            [torch.stack([part.reshape(()) for part in moved]), known.to(self._device, non_blocking=True)]
        )
        before = self._pop_pending()
        self._pending = (position, time.perf_counter(), _AsyncGather(mine, self._world))
        return before

    def flush(self) -> StepMetrics | None:
        """Return the metrics of the last step, for the end of an epoch or a checkpoint; None if already returned."""
        return self._pop_pending()

    def _pop_pending(self) -> StepMetrics | None:
        if self._pending is None:
            return None
        position, when, gathered = self._pending
        self._pending = None
        return self._aggregate(position, when, gathered.result())

    def _aggregate(self, position: StepPosition, when: float, ranks: list[list[float]]) -> StepMetrics:
        sums = [sum(column) for column in zip(*ranks, strict=True)]
        split = 2 + len(self._loss_terms)
        rows, counts = sums[split], sums[split + 2 :]
        return StepMetrics(
            position=position,
            time=when,
            loss=sums[0] / rows,
            loss_terms={
                name: value / rows for name, value in zip(self._loss_terms, sums[2:split], strict=True)
            },
            rank_losses=tuple(rank[0] for rank in ranks),
            gradient_norm=None if ranks[0][1] == _NO_NORM else ranks[0][1],
            rows=int(rows),
            tokens={
                name: (int(real), int(padded))
                for name, real, padded in zip(self._length_masks, counts[::2], counts[1::2], strict=True)
                if padded
            },
            data_wait_seconds=max(rank[split + 1] for rank in ranks),
        )


class _AsyncGather:
    """Asynchronous gather of a rank's numbers to all ranks, and copy from the GPU to the host."""

    def __init__(self, mine: torch.Tensor, world_size: int) -> None:
        self._table, self._work = mine.unsqueeze(0), None
        self._copied: torch.cuda.Event | None = None
        if world_size > 1:
            together = mine.new_empty(world_size * len(mine))
            self._work = torch.distributed.all_gather_single(together, mine, async_op=True)
            self._table = together.view(world_size, len(mine))
        if mine.is_cuda:
            self._copy_to_host()

    def _copy_to_host(self) -> None:
        """Start the copy, so that `result` does not wait for operations of the next step."""
        if self._work is not None:
            self._work.wait()  # with NCCL only the stream waits
            self._work = None
        host = torch.empty(self._table.shape, dtype=self._table.dtype, pin_memory=True)
        self._table = host.copy_(self._table, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def result(self) -> list[list[float]]:
        if self._work is not None:
            self._work.wait()
        if self._copied is not None:
            self._copied.synchronize()
        return self._table.tolist()


def _count_tokens(batches: Sequence[Batch], name: str, mask: str | None) -> tuple[int, int]:
    if mask is None:
        return 0, 0
    found = [_count_encoder_tokens(batch.inputs[name], mask) for batch in batches]
    return sum(real for real, _ in found), sum(padded for _, padded in found)


def _count_encoder_tokens(part: EncoderBatch, mask: str) -> tuple[int, int]:
    """Count the steps of a batch without and with padding; 0 for a dummy value, and for cached features."""
    if part.features is None or mask not in part.features or not bool((part.index >= 0).any()):
        return 0, 0
    return int(part.features[mask].sum()), part.features[mask].numel()

"""Rows of all workers, for losses that look at several samples: more of them meet than one worker holds."""

from typing import Any

import torch
from torch import distributed


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all workers in the order of their ranks, and where this worker's own begin.

    rows: (own rows, …), of any number on each worker, the rest of the shape alike. Gradients flow back to the worker
    that a row came from, summed over all. Every worker must call it as often, and take part in the backward pass.
    Without a process group, the rows themselves.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows, 0
    sizes = [
        torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())
    ]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    start = sum(counts[: distributed.get_rank()])
    gathered: torch.Tensor = _Gather.apply(rows, counts, start)
    return gathered, start


class _Gather(torch.autograd.Function):
    """All-gather of differently many rows; its gradient is the sum over all workers."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int], start: int) -> torch.Tensor:
        ctx.own = slice(start, start + len(rows))
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.own], None, None

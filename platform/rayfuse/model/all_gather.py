"""Differentiable all-gather, for losses over the samples of all workers."""

from typing import Any

import torch
from torch import distributed


def all_gather_with_grad(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather the rows of all workers in rank order; also return the index of this worker's first row.

    rows: (local rows, …); workers may hold different numbers of rows. The gradient of a row, summed over all workers,
    flows back to the worker that holds it. Every worker must make the same calls and take part in the backward pass.
    Without a process group, returns `rows` and 0.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows, 0
    sizes = [
        torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())
    ]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    start = sum(counts[: distributed.get_rank()])
    gathered: torch.Tensor = _AllGather.apply(rows, counts, start)
    return gathered, start


class _AllGather(torch.autograd.Function):
    """All-gather of different numbers of rows; the gradient is all-reduced by sum."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int], start: int) -> torch.Tensor:
        ctx.local = slice(start, start + len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.local], None, None

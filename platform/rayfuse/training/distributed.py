"""Rank, world size and device of a worker, and collectives over Python objects."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """Position of this worker among all workers of a run. Every rank must call each collective."""

    rank: int = 0
    """Rank of this worker, counted from 0."""
    world_size: int = 1
    """Number of workers."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device that this worker trains on."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes checkpoints and logs."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the value that rank 0 passed, on every rank."""
        if self.world_size == 1:
            return value
        values: list[Any] = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        result: T = values[0]
        return result

    def compute_on_main(self, compute: Callable[[], T]) -> T:
        """Compute a value on rank 0, and return it on every rank."""
        value: Any = compute() if self.is_main else None
        result: T = self.broadcast(value)
        return result

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all ranks in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor with that of rank 0."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=0)

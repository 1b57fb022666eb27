"""Copy tensors to host memory that is reused from one checkpoint to the next."""

from collections.abc import Iterable

import torch

HostBuffers = dict[str, torch.Tensor]
"""Tensors on the CPU by name."""


def copy_to_cpu(
    tensors: Iterable[tuple[str, torch.Tensor]], buffers: HostBuffers | None = None
) -> HostBuffers:
    """Copy tensors by name into `buffers`, which are allocated where absent, and return the copies.

    Reused memory is faster, because new pages cost more than the copy. Tensors are copied one by one, so an iterator
    that gathers them holds one at a time. Memory that a GPU copies to is pinned.
    """
    buffers = {} if buffers is None else buffers
    copied: HostBuffers = {}
    on_gpu = False
    for name, tensor in tensors:
        if name not in buffers:
            buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copied[name] = buffers[name].copy_(tensor.detach(), non_blocking=True)
        on_gpu |= tensor.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    return copied

"""Copies of tensors in host memory that is taken again and again, as for one checkpoint after the other."""

from collections.abc import Iterable

import torch

Copies = dict[str, torch.Tensor]
"""By name, on the CPU."""


def copy_to_cpu(tensors: Iterable[tuple[str, torch.Tensor]], into: Copies | None = None) -> Copies:
    """Copies of tensors by name, which go over those in `into` and are kept there: fresh pages cost more than the copy.

    One is copied after the other, so that those that are made to be copied are never all there at once. Memory that a
    GPU copies to is pinned.
    """
    into = {} if into is None else into
    copied: Copies = {}
    on_gpu = False
    for name, tensor in tensors:
        if name not in into:
            into[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copied[name] = into[name].copy_(tensor.detach(), non_blocking=True)
        on_gpu |= tensor.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    return copied

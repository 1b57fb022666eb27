"""Copies of tensors in host memory that is taken again and again, as for one checkpoint after the other."""

from collections.abc import Mapping

import torch

Copies = dict[str, torch.Tensor]
"""By name, on the CPU."""


def copy_to_cpu(tensors: Mapping[str, torch.Tensor], into: Copies | None = None) -> Copies:
    """Copies of the tensors, which go over those in `into` and are kept there: fresh pages cost more than the copy.

    Memory that a GPU copies to is pinned.
    """
    into = {} if into is None else into
    for name, tensor in tensors.items():
        if name not in into:
            into[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    if tensors:
        sources = [tensor.detach() for tensor in tensors.values()]
        torch._foreach_copy_([into[name] for name in tensors], sources, non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return {name: into[name] for name in tensors}

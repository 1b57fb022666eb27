"""Copies of tensors for checkpoints."""

import torch

from rayfuse.training.pinned_buffers import copy_to_cpu


def test_later_copies_reuse_the_memory_of_earlier_ones() -> None:
    buffers: dict[str, torch.Tensor] = {}
    first = copy_to_cpu([("a", torch.ones(3))], buffers)
    second = copy_to_cpu([("a", torch.full((3,), 2.0))], buffers)
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    assert copy_to_cpu([("a", torch.ones(3))])["a"].data_ptr() != first["a"].data_ptr()

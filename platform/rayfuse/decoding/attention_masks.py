"""Attention masks over the slots of a window, where rows have different lengths."""

from collections.abc import Mapping

import torch

from rayfuse.decoding.slot_cache import Window

AttentionMask = torch.Tensor | Mapping[str, torch.Tensor] | None


def causal_mask(window: Window, sliding_window: int | None = None) -> torch.Tensor:
    """Return which positions each query attends to: booleans of shape (rows, 1, queries, width).

    Those up to its own, and with a sliding window only the last `sliding_window` of them.
    """
    query = window.positions[:, None, :, None]
    key = torch.arange(window.width, device=query.device)
    allowed = key <= query
    return allowed if sliding_window is None else allowed & (key > query - sliding_window)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask as numbers that eager attention adds to its scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

"""Positions per row for decoders that compute them from one length of the whole batch.

Most models take `position_ids`. T5's relative biases and the learned positions of BART's family are instead computed
from the length of the cache, so that rows of different lengths need these replacements during a forward pass.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rayfuse.decoding.slot_cache import Window


@contextmanager
def positions_per_row(decoder: nn.Module, window: Window) -> Iterator[None]:
    """Make a decoder use the positions of a window, whose rows have different lengths."""
    with ExitStack() as replaced:
        for module in decoder.modules():
            if getattr(module, "has_relative_attention_bias", False):
                replaced.enter_context(_replace(module, "compute_bias", _relative_bias(module, window)))
        learned = getattr(decoder, "embed_positions", None)
        if isinstance(learned, nn.Embedding):
            replaced.enter_context(_replace(learned, "forward", _position_embedding(learned, window)))
        yield


@contextmanager
def _replace(module: nn.Module, name: str, method: Any) -> Iterator[None]:
    setattr(module, name, method)
    try:
        yield
    finally:
        delattr(module, name)


def _relative_bias(attention: Any, window: Window) -> Any:
    """Return T5's `compute_bias` (Raffel et al., 2020) with the positions of each row."""
    options = {
        "bidirectional": False,
        "num_buckets": attention.relative_attention_num_buckets,
        "max_distance": attention.relative_attention_max_distance,
    }
    taken = inspect.signature(attention._relative_position_bucket).parameters  # UMT5 takes none of them

    def compute_bias(*args: Any, **kwargs: Any) -> torch.Tensor:
        distance = torch.arange(window.width, device=window.positions.device) - window.positions[:, :, None]
        bucket = attention._relative_position_bucket(
            distance, **{name: value for name, value in options.items() if name in taken}
        )
        return attention.relative_attention_bias(bucket).permute(0, 3, 1, 2)

    return compute_bias


def _position_embedding(learned: nn.Embedding, window: Window) -> Any:
    offset = int(getattr(learned, "offset", 0))

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        return functional.embedding(window.positions + offset, learned.weight)

    return forward

"""Keys and values of inputs that added layers of a causal language model attend to."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, float (rows, heads, tokens, head dim)."""


@dataclass(frozen=True)
class InputMemory:
    """Keys and values of the inputs of a batch in each layer that attends to them."""

    layers: Sequence[KeysValues]
    mask: torch.Tensor
    """Mask of the tokens, bool (rows, tokens); a row without any is left unchanged by the layers."""


class InputAttention(Protocol):
    """Layers that attend to inputs, and are called by the layers of a language model."""

    @property
    def dim(self) -> int:
        """Width of the inputs' tokens."""

    def keys_values(self, tokens: torch.Tensor) -> list[KeysValues]:
        """Return the keys and values in each layer of tokens, float (rows, tokens, dim)."""

    def attend(self, memory: InputMemory | None) -> AbstractContextManager[None]:
        """Attend to these inputs in the forward passes of this thread; None: to nothing."""

"""Keys and values of all slots, behind the cache interface of transformers.

Each layer holds tensors of shape (slots, heads, positions, dimension). A forward pass reads and writes the window of
slots that `SlotCache.select` set: a contiguous range, so that attention reads views instead of gathered copies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from rayfuse.errors import ResourceError
from rayfuse.formatting import format_bytes


@dataclass(frozen=True)
class LayerShape:
    """Shape of one layer's keys and values at one position of one slot."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    sliding_window: int | None = None
    """Number of positions that a token attends to; None: all before it."""

    @property
    def bytes_per_position(self) -> int:
        """Return the bytes of the keys and values of one position."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True)
class Window:
    """Slots and positions that a forward pass writes.

    Rows first to first + len(starts) write `positions`, of shape (rows, queries), and attend to positions below
    `width`.
    """

    first: int
    starts: tuple[int, ...]
    """Number of positions of each row before this pass."""
    positions: torch.Tensor
    width: int

    @property
    def rows(self) -> slice:
        """Return the slots of the window."""
        return slice(self.first, self.first + len(self.starts))

    @property
    def aligned(self) -> bool:
        """Return True if all rows have the same length, so that they need no mask but the causal one."""
        return len(set(self.starts)) == 1 and self.width == self.starts[0] + self.positions.shape[1]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer in all slots."""

    def __init__(self, shape: LayerShape, slots: int, positions: int) -> None:
        super().__init__()
        self.is_sliding = shape.sliding_window is not None
        self._keys = torch.zeros(
            slots, shape.heads, positions, shape.key_dim, dtype=shape.dtype, device=shape.device
        )
        self._values = torch.zeros(
            slots, shape.heads, positions, shape.value_dim, dtype=shape.dtype, device=shape.device
        )
        self._window: Window | None = None
        self.is_initialized = True

    def select(self, window: Window) -> None:
        """Set the slots and positions of the next forward pass."""
        self._window = window
        self.keys = self._keys[window.rows, :, : window.width]
        self.values = self._values[window.rows, :, : window.width]

    @property
    def selected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values (rows, heads, width, dimension) of the window."""
        assert self.keys is not None and self.values is not None, "`select` has been called"
        return self.keys, self.values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the tensors exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states (rows, heads, queries, dimension) of the window; return those of all its positions."""
        window = self._window
        assert window is not None and self.keys is not None and self.values is not None
        if window.aligned:
            start = window.starts[0]
            self.keys[:, :, start:] = key_states
            self.values[:, :, start:] = value_states
        else:
            rows = torch.arange(len(window.starts), device=self.keys.device)[:, None]
            # Under autocast, rotated keys are float32 and values are not.
            self.keys[rows, :, window.positions] = key_states.transpose(1, 2).to(self.keys.dtype)
            self.values[rows, :, window.positions] = value_states.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of positions that queries attend to, and the first of them."""
        return (query_length if self._window is None else self._window.width), 0

    def get_seq_length(self) -> int:
        """Return the number of positions before this pass, of the longest row."""
        return 0 if self._window is None else max(self._window.starts)

    def get_max_length(self) -> int:
        """Return the number of positions of a slot."""
        return self._keys.shape[2]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        for states in (self._keys, self._values):
            states[target, :, :length] = states[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        for states in (self._keys, self._values):
            states[[one, other], :, :length] = states[[other, one], :, :length]

    def zero(self, slot: int) -> None:
        """Set a slot to zero: a NaN would reach others through a weight of 0."""
        self._keys[slot].zero_()
        self._values[slot].zero_()


class SlotCache(Cache):
    """Keys and values of all layers in all slots."""

    def __init__(self, shapes: Sequence[LayerShape], slots: int, positions: int) -> None:
        self._slot_layers = [SlotLayer(shape, slots, positions) for shape in shapes]
        super().__init__(layers=list(self._slot_layers))
        self.slots = slots
        self.positions = positions

    def select(self, window: Window) -> None:
        """Set the slots and positions of the next forward pass."""
        for layer in self._slot_layers:
            layer.select(window)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        for layer in self._slot_layers:
            layer.copy(source, target, length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        for layer in self._slot_layers:
            layer.swap(one, other, length)

    def zero(self, slot: int) -> None:
        """Set a slot to zero."""
        for layer in self._slot_layers:
            layer.zero(slot)


def bytes_per_slot(shapes: Iterable[LayerShape], positions: int) -> int:
    """Return the bytes that the keys and values of `positions` positions take."""
    return positions * sum(shape.bytes_per_position for shape in shapes)


def fit_slots(slot_bytes: int, memory: int | None, max_slots: int, max_length: int) -> int:
    """Return how many slots fit into `memory` bytes, at most `max_slots`. Raises ResourceError if not one does."""
    if memory is None:
        return max_slots
    slots = min(max_slots, memory // max(1, slot_bytes))
    if slots < 1:
        raise ResourceError(
            f"the key–value cache of one slot of {max_length} tokens takes {format_bytes(slot_bytes)}, and its memory "
            f"limit is {format_bytes(memory)}; raise the limit to {format_bytes(slot_bytes)} or shorten the slot to "
            f"{max_length * memory // slot_bytes} tokens"
        )
    return slots

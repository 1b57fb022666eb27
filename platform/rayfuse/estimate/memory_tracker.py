"""Tracking of the memory of tensors while operations run, as on fake tensors."""

import gc
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten


@dataclass(frozen=True)
class MemoryPeak:
    """Bytes at one moment of a step, in addition to the model and its optimizer."""

    activations: int
    """Saved activations, gradients of activations, workspace, and the batch."""
    gradients: int
    """Gradients of parameters."""

    @property
    def total(self) -> int:
        """Sum of all bytes."""
        return self.activations + self.gradients


_GC_GROWTH = 1.01
"""Growth of the live bytes after which garbage is collected before they are compared."""


class MemoryTracker(TorchDispatchMode):
    """Tracks the bytes of storages that operations create, from first to last reference, without those of `persistent`.

    Storages that only garbage refers to do not count, whenever Python collects it.
    """

    def __init__(self, persistent: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.base_bytes = self.live_bytes = self.gradient_bytes = self.num_operations = 0
        self._tracked: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in persistent}
        self.reset_peaks()

    def reset_peaks(self) -> None:
        """Start new peaks at the current bytes."""
        self._last_collected = self.live_bytes
        self.peak_activations = self.peak_total = MemoryPeak(self.live_bytes, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.num_operations += 1
        override = _OP_OVERRIDES.get(func)
        result = override(func, *args, **(kwargs or {})) if override else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._track(leaf.untyped_storage())
        self._update_peaks()
        return result

    def _update_peaks(self) -> None:
        if self.live_bytes > _GC_GROWTH * self._last_collected:
            gc.collect()
            self._last_collected = max(self.live_bytes, self._last_collected)
        moment = MemoryPeak(self.base_bytes + self.live_bytes - self.gradient_bytes, self.gradient_bytes)
        if moment.activations > self.peak_activations.activations:
            self.peak_activations = moment
        if moment.total > self.peak_total.total:
            self.peak_total = moment

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._tracked or not size:
            return

        def freed(_: Any) -> None:
            del self._tracked[key]
            self.live_bytes -= size

        self._tracked[key] = weakref.ref(storage, freed)
        self.live_bytes += size


@contextmanager
def freeze_gc() -> Iterator[None]:
    """Collect garbage among new objects alone."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def track_gradients(parameters: Collection[torch.Tensor], tracker: MemoryTracker) -> Iterator[None]:
    """Count the gradients of these parameters as `gradient_bytes`, and remove them at the end."""

    def count(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        tracker.gradient_bytes += parameter.grad.untyped_storage().nbytes()

    hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.grad = None


def _index_all(func: Any, tensor: torch.Tensor, indices: list[Any]) -> torch.Tensor:
    """Index a tensor; a mask is taken to be all true."""
    if any(index is not None and index.dtype == torch.bool for index in indices):
        [mask] = indices
        return tensor.flatten(0, mask.ndim - 1).clone()
    return func(tensor, indices)


def _index_put_all(func: Any, tensor: torch.Tensor, indices: list[Any], *rest: Any) -> torch.Tensor:
    if any(index is not None and index.dtype == torch.bool for index in indices):
        return tensor if func in _IN_PLACE else tensor.clone()
    return func(tensor, indices, *rest)


def _scalar_one(func: Any, tensor: torch.Tensor) -> Any:
    return {torch.bool: True}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)


_IN_PLACE = {_aten.index_put_.default, _aten._index_put_impl_.default}
_OP_OVERRIDES: dict[Any, Callable[..., Any]] = {
    _aten.index.Tensor: _index_all,
    _aten.index_put.default: _index_put_all,
    _aten.index_put_.default: _index_put_all,
    _aten._index_put_impl_.default: _index_put_all,
    _aten._local_scalar_dense.default: _scalar_one,
}
"""Replacements of operations whose result depends on values."""

"""A job's model and one training step on fake tensors: sizes, what lives when, and operations, but no numbers.

Masks are taken to be all true, as in the fullest batch.
"""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.data.encoded import MASK, TOKENS, WORD_STARTS
from rayfuse.errors import RayfuseError
from rayfuse.model.encoders.huggingface import without_weights
from rayfuse.model.encoders.networks import Recurrent
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.spec.cache import cached_inputs
from rayfuse.spec.job import Job
from rayfuse.train.activation_checkpointing import checkpoint_activations
from rayfuse.train.groups import parameter_groups
from rayfuse.train.optimizers import build_optimizer
from rayfuse.train.plan.typical import typical_batch
from rayfuse.train.precision import DTYPES, round_frozen

_aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Numbers of parameters: of an encoder, or of all alignment, fusion or tasks."""

    name: str
    total: int
    trained: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's tensors."""

    parts: list[Part]
    weights: int
    buffers: int
    trained: int
    groups: list[int]
    """Bytes of the trained parameters in each of the optimizer's groups."""
    largest: int
    """Bytes of the largest trained parameter."""


@dataclass(frozen=True)
class Moment:
    """Bytes that live at one moment of a step, beyond the model and its optimizer."""

    activations: int
    """What the forward pass keeps for the backward pass, gradients on their way, workspace, and the batch."""
    gradients: int
    """Of parameters."""

    @property
    def total(self) -> int:
        return self.activations + self.gradients


@dataclass(frozen=True)
class Step:
    """Forward and backward of one micro-batch."""

    rows: int
    kept: int
    """Bytes of activations at the end of the forward pass."""
    most_activations: Moment
    """When activations are most."""
    most_together: Moment
    """When activations and gradients of parameters are most in sum."""
    flops: int
    """Floating-point operations of forward and backward; a multiplication with an addition counts as two."""
    calls: int
    """Operations on whole tensors, each of which a GPU has to be told of."""


@dataclass(frozen=True)
class Optimizer:
    """Bytes of an optimizer over parameters that lie on one worker."""

    state: int
    flat: int
    """Of the largest of the flat gradients that it is given; 0 where it gets each parameter's own."""
    workspace: int
    """Most that a step needs beside parameters, gradients and state."""


class Simulation:
    """A fitted job on fake tensors, its weights as ZeRO 0 to 2 have them or, `divided`, as ZeRO 3 has.

    Raises RayfuseError where the shapes of a part depend on what its inputs hold.
    """

    def __init__(self, job: Job, precision: str, divided: bool = False) -> None:
        self.job, self.precision = job, precision
        self._mode = FakeTensorMode()
        with warnings.catch_warnings(), without_weights(), torch.device("meta"):
            warnings.filterwarnings(
                "ignore", ".*copying from a non-meta parameter"
            )  # one's own weights stay out
            self.model = FusedModel(job)
        if not divided:
            round_frozen(self.model, precision)
        with self._mode:
            _as_on_cpu(self.model)
        if job.train.activation_checkpointing:
            checkpoint_activations(self.model)
        for module in self.model.modules():
            if isinstance(module, Recurrent):
                module.forward = partial(_unpacked, module)  # type: ignore[method-assign]

    @contextmanager
    def _faking(self) -> Iterator[None]:
        with warnings.catch_warnings(), self._mode, _quick_collections():
            warnings.simplefilter("ignore")  # of modules that look at a tensor's address
            try:
                yield
            except (
                DataDependentOutputException,
                DynamicOutputShapeException,
                UnsupportedOperatorException,
            ) as error:
                raise RayfuseError(
                    f"what this model computes cannot be known from shapes alone: {error}; use masks in the place of "
                    "branches and of shapes that depend on values, or run the job on a few rows and look at its memory"
                ) from None

    def sizes(self) -> Sizes:
        """The model's tensors."""
        encoders = {f"encoder {name}": module for name, module in self.model.encoders.items()}
        others = {name: module for name, module in self.model.named_children() if name != "encoders"}
        parts = [_part(name, module) for name, module in (encoders | others).items()]
        trained = list(trainable_parameters(self.model).values())
        return Sizes(
            [part for part in parts if part.total],
            _bytes(self.model.parameters()),
            _bytes(self.model.buffers()),
            _bytes(trained),
            [_bytes(group["params"]) for group in parameter_groups(self.job, self.model)],
            max((_bytes([parameter]) for parameter in trained), default=0),
        )

    def step(self, rows: int) -> Step:
        """One micro-batch of `rows` rows."""
        self.model.train()
        batch = self._batch(rows)
        counted = FlopCounterMode(display=False)
        with self._faking(), counted, _Live(self._kept(batch)) as live, _gradients_apart(self.model, live):
            held = _bytes(_tensors(batch))
            live.base = held
            with self._autocast():
                outputs = self.model(batch)
            losses = self.model.losses(outputs, batch)
            loss = self.model.total_loss(losses, batch)
            kept = live.now + held
            loss.backward()
        return Step(
            rows, kept, live.most_activations, live.most_together, counted.get_total_flops(), live.calls
        )

    def evaluation(self, rows: int) -> int:
        """Most bytes of a forward pass that no backward pass follows, beyond the model."""
        self.model.eval()
        batch = self._batch(rows)
        with self._faking(), torch.no_grad(), _Live(self._kept(batch)) as live, self._autocast():
            self.model(batch)
        return live.most_activations.total + _bytes(_tensors(batch))

    def optimizer(self, flat_parts: int | None) -> Optimizer:
        """A step of the optimizer: on the parameters themselves, or on one of so many equal parts of flat groups."""
        with self._faking(), _Live(self._kept()) as live:
            groups = parameter_groups(self.job, self.model)
            if flat_parts:
                groups = [{**group, "params": [_flat(group["params"], flat_parts)]} for group in groups]
            for group in groups:
                for parameter in group["params"]:
                    parameter.grad = torch.empty_like(parameter)
            optimizer = build_optimizer(self.job.train.optimizer, groups)
            before = live.now
            optimizer.step()
            state = live.now - before
            workspace = 0
            turns = [[group] for group in optimizer.param_groups] if flat_parts else [optimizer.param_groups]
            for turn in turns:
                optimizer.param_groups = turn
                live.forget_peaks()
                optimizer.step()
                workspace = max(workspace, live.most_activations.total - live.now)
            flat = max(_bytes(group["params"]) for group in groups) if flat_parts else 0
            for parameter in self.model.parameters():
                parameter.grad = None
        return Optimizer(state, flat, workspace)

    def _kept(self, batch: Batch | None = None) -> list[torch.Tensor]:
        """What lives throughout a step."""
        return [*self.model.parameters(), *self.model.buffers(), *(_tensors(batch) if batch else ())]

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast("cpu", dtype=DTYPES[self.precision])

    def _batch(self, rows: int) -> Batch:
        """As it reaches the model: in the place of what a frozen encoder reads, what the cache has of it."""
        batch = self._fake(typical_batch(self.job, rows))
        inputs = dict(batch.inputs)
        for name in cached_inputs(self.job):
            part = inputs[name]
            assert part.features is not None, "typical rows have every input"
            read = {key: value for key, value in part.features.items() if key != WORD_STARTS}
            with self._faking(), torch.no_grad(), self._autocast():
                tokens, mask = self.model.encoders[name](**read)
            kept = {key: value for key, value in part.features.items() if key == WORD_STARTS}
            inputs[name] = replace(part, features={TOKENS: tokens, MASK: mask, **kept})
        return replace(batch, inputs=inputs)

    def _fake(self, batch: Batch) -> Batch:
        fake = self._mode.from_tensor
        inputs = {
            name: EncoderBatch(
                None if part.features is None else {key: fake(value) for key, value in part.features.items()},
                fake(part.index),
            )
            for name, part in batch.inputs.items()
        }
        return Batch(
            inputs,
            {name: fake(target) for name, target in batch.targets.items()},
            fake(batch.weights),
            None if batch.source is None else fake(batch.source),
        )


_GROWN = 1.01
"""Storages must be this much larger than before, for garbage to be collected before they count."""


class _Live(TorchDispatchMode):
    """Follows the bytes of the storages that operations make, from first to last reference; not those of `kept`.

    What only garbage refers to does not count, whenever Python collects it.
    """

    def __init__(self, kept: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.base = self.now = self.gradients = self.calls = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in kept}
        self.forget_peaks()

    def forget_peaks(self) -> None:
        self._collected = self.now
        self.most_activations = self.most_together = Moment(self.now, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        replaced = _ASSUMED.get(func)
        result = replaced(func, *args, **(kwargs or {})) if replaced else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        self._look()
        return result

    def _look(self) -> None:
        if self.now > _GROWN * self._collected:
            gc.collect()
            self._collected = max(self.now, self._collected)
        moment = Moment(self.base + self.now - self.gradients, self.gradients)
        if moment.activations > self.most_activations.activations:
            self.most_activations = moment
        if moment.total > self.most_together.total:
            self.most_together = moment

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return

        def freed(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Python's garbage is looked for among new objects alone."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _gradients_apart(model: nn.Module, live: _Live) -> Iterator[None]:
    """Count finished gradients of parameters for themselves."""

    def note(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        live.gradients += parameter.grad.untyped_storage().nbytes()

    hooks = [
        parameter.register_post_accumulate_grad_hook(note)
        for parameter in trainable_parameters(model).values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            parameter.grad = None


def _whole_rows(func: Any, tensor: torch.Tensor, indices: list[Any]) -> torch.Tensor:
    """Indexing; a mask is taken to choose everything."""
    if any(index is not None and index.dtype == torch.bool for index in indices):
        [mask] = indices
        return tensor.flatten(0, mask.ndim - 1).clone()
    return func(tensor, indices)


def _put_whole_rows(func: Any, tensor: torch.Tensor, indices: list[Any], *rest: Any) -> torch.Tensor:
    if any(index is not None and index.dtype == torch.bool for index in indices):
        return tensor if func in _IN_PLACE else tensor.clone()
    return func(tensor, indices, *rest)


def _one(func: Any, tensor: torch.Tensor) -> Any:
    return {torch.bool: True}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)


_IN_PLACE = {_aten.index_put_.default, _aten._index_put_impl_.default}
_ASSUMED: dict[Any, Callable[..., Any]] = {
    _aten.index.Tensor: _whole_rows,
    _aten.index_put.default: _put_whole_rows,
    _aten.index_put_.default: _put_whole_rows,
    _aten._index_put_impl_.default: _put_whole_rows,
    _aten._local_scalar_dense.default: _one,
}
"""Operations that look at values, and what stands in for them."""


def _as_on_cpu(model: nn.Module) -> None:
    """Put fake tensors of the CPU, on which autocast works, in the place of those on the meta device."""
    made: dict[torch.Tensor, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if tensor not in made:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        return made[tensor]

    for module in model.modules():
        own = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                setattr(module, name, fake(value))


def _unpacked(module: Recurrent, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`Recurrent.forward` where all rows are equally long; packing rows reads their lengths."""
    with torch.backends.mkldnn.flags(enabled=False):  # which packed rows do not use either
        states, _ = module.layers(steps)
    return module.dropout(states) * mask.unsqueeze(2)


def _part(name: str, module: nn.Module) -> Part:
    parameters = list(module.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Part(name, sum(parameter.numel() for parameter in parameters), trained)


def _flat(parameters: list[nn.Parameter], parts: int) -> nn.Parameter:
    numbers = sum(parameter.numel() for parameter in parameters)
    aligned = -(-numbers // (2 * parts)) * 2 * parts
    return nn.Parameter(torch.empty(aligned // parts))


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    for part in batch.inputs.values():
        yield from (part.features or {}).values()
        yield part.index
    yield from batch.targets.values()
    yield batch.weights


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""Simulation of a training step on fake tensors, which have shapes and no storage: memory, FLOPs and operations.

Masks are taken to be all true, as in a full batch.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils.flop_counter import FlopCounterMode

from rayfuse.data.cached_features import WORD_STARTS
from rayfuse.data.collate import Batch
from rayfuse.errors import RayfuseError
from rayfuse.estimate.full_prompts import assume_full_prompts
from rayfuse.estimate.memory_tracker import MemoryPeak, MemoryTracker, freeze_gc, track_gradients
from rayfuse.estimate.synthetic_batch import make_synthetic_batch
from rayfuse.model.encoders.huggingface import skip_weight_loading
from rayfuse.model.encoders.networks import Recurrent
from rayfuse.model.evaluation import Subset, evaluated_subsets
from rayfuse.model.fused import FusedModel, task_heads, trainable_parameters
from rayfuse.spec.feature_cache import cached_inputs
from rayfuse.spec.job import Job
from rayfuse.training.activation_checkpointing import checkpoint_activations
from rayfuse.training.optimizers import build_optimizer
from rayfuse.training.param_groups import build_param_groups
from rayfuse.training.precision import DTYPES, cast_frozen_weights


@dataclass(frozen=True)
class ModuleSize:
    """Parameters of a part of the model: an encoder, or all of alignment, fusion or tasks."""

    name: str
    """Name of the part."""
    num_parameters: int
    """Number of all parameters."""
    num_trainable: int
    """Number of trainable parameters."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model's tensors, in bytes."""

    modules: list[ModuleSize]
    """Parameters by part of the model."""
    weights: int
    """Bytes of all parameters."""
    buffers: int
    """Bytes of all buffers."""
    trainable: int
    """Bytes of the trainable parameters."""
    param_groups: list[int]
    """Bytes of the trainable parameters in each of the optimizer's groups."""
    largest_parameter: int
    """Bytes of the largest trainable parameter."""


@dataclass(frozen=True)
class StepEstimate:
    """Cost of forward and backward of one micro-batch."""

    rows: int
    """Rows of the micro-batch."""
    saved_activations: int
    """Bytes of activations at the end of the forward pass."""
    peak_activations: MemoryPeak
    """Memory when activations peak."""
    peak_total: MemoryPeak
    """Memory when the sum of activations and gradients of parameters peaks."""
    flops: int
    """Floating-point operations of forward and backward; a multiply-add counts as two."""
    num_operations: int
    """Number of tensor operations, each of which is a kernel launch on a GPU."""


@dataclass(frozen=True)
class OptimizerMemory:
    """Memory of the optimizer on one worker, in bytes."""

    state: int
    """Bytes of its state."""
    flat_gradients: int
    """Bytes of the largest flat gradient that it gets; 0 if it gets the gradient of each parameter."""
    workspace: int
    """Peak bytes of a step in addition to parameters, gradients and state."""


class Simulation:
    """The model of a fitted job on fake tensors, with weights as under ZeRO stages 0 to 2, or 3 if `sharded`.

    Every method raises RayfuseError if shapes in the model depend on values of its inputs.
    """

    def __init__(self, job: Job, precision: str, sharded: bool = False) -> None:
        self.job, self.precision = job, precision
        self._fake_mode = FakeTensorMode()
        with warnings.catch_warnings(), skip_weight_loading(), torch.device("meta"):
            # Weights that a custom encoder loads have no effect on the meta device.
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            self.model = FusedModel(job)
        if not sharded:
            cast_frozen_weights(self.model, precision)
        with self._fake_mode:
            _move_to_fake_cpu(self.model)
        if job.train.activation_checkpointing:
            checkpoint_activations(self.model)
        for module in self.model.modules():
            if isinstance(module, Recurrent):
                module.forward = partial(_unpacked_forward, module)  # type: ignore[method-assign]
            assume_full_prompts(module)

    @contextmanager
    def _fake_execution(self) -> Iterator[None]:
        with warnings.catch_warnings(), self._fake_mode, freeze_gc():
            warnings.simplefilter("ignore")  # from modules that read the address of a tensor
            try:
                yield
            except (
                DataDependentOutputException,
                DynamicOutputShapeException,
                UnsupportedOperatorException,
            ) as error:
                raise RayfuseError(
                    f"the model cannot be simulated, as a shape or branch depends on values of tensors: {error}; use "
                    "masks instead, or train on a few rows and read memory/peak_bytes in MLflow"
                ) from None

    def sizes(self) -> ModelSizes:
        """Return the sizes of the model's tensors."""
        encoders = {f"encoder {name}": module for name, module in self.model.encoders.items()}
        others = {name: module for name, module in self.model.named_children() if name != "encoders"}
        parts = [_module_size(name, module) for name, module in (encoders | others).items()]
        trained = list(trainable_parameters(self.model).values())
        return ModelSizes(
            [part for part in parts if part.num_parameters],
            _total_bytes(self.model.parameters()),
            _total_bytes(self.model.buffers()),
            _total_bytes(trained),
            [_total_bytes(group["params"]) for group in build_param_groups(self.job, self.model)],
            max((_total_bytes([parameter]) for parameter in trained), default=0),
        )

    def simulate_step(self, rows: int) -> StepEstimate:
        """Simulate forward and backward of a micro-batch of `rows` rows."""
        self.model.train()
        batch = self._batch(rows)
        counted = FlopCounterMode(display=False)
        with (
            self._fake_execution(),
            counted,
            MemoryTracker(self._persistent_tensors(batch)) as live,
            track_gradients(trainable_parameters(self.model).values(), live),
        ):
            held = _total_bytes(_batch_tensors(batch))
            live.base_bytes = held
            with self._autocast():
                outputs = self.model(batch)
            losses = self.model.losses(outputs, batch)
            loss = self.model.total_loss(losses, batch)
            saved = live.live_bytes + held
            loss.backward()
        return StepEstimate(
            rows,
            saved,
            live.peak_activations,
            live.peak_total,
            counted.get_total_flops(),
            live.num_operations,
        )

    def simulate_evaluation(self, rows: int) -> int:
        """Return the peak bytes of a forward pass for subsets of the inputs without gradients, in addition to the model."""
        self.model.eval()
        batch = self._batch(rows)
        with (
            self._fake_execution(),
            torch.no_grad(),
            MemoryTracker(self._persistent_tensors(batch)) as live,
            self._autocast(),
        ):
            self.model(batch, self._evaluated_subsets())
        return live.peak_activations.total + _total_bytes(_batch_tensors(batch))

    def _evaluated_subsets(self) -> list[Subset]:
        """Return the subsets of the inputs to simulate: with a language model, whose outputs are few numbers, only two."""
        inputs = tuple(self.job.inputs)
        if any(head.reads_targets for head in task_heads(self.model).values()):
            return [inputs, ()]
        return [*evaluated_subsets(list(inputs)), ()]

    def simulate_optimizer(self, num_shards: int | None) -> OptimizerMemory:
        """Simulate an optimizer step on all parameters, or, with `num_shards`, on one shard of each flat parameter group."""
        with self._fake_execution(), MemoryTracker(self._persistent_tensors()) as live:
            groups = build_param_groups(self.job, self.model)
            if num_shards:
                groups = [{**group, "params": [_flat_shard(group["params"], num_shards)]} for group in groups]
            for group in groups:
                for parameter in group["params"]:
                    parameter.grad = torch.empty_like(parameter)
            optimizer = build_optimizer(self.job.train.optimizer, groups)
            before = live.live_bytes
            optimizer.step()
            state = live.live_bytes - before
            workspace = 0
            # DeepSpeed steps flat groups one after another.
            steps = [[group] for group in optimizer.param_groups] if num_shards else [optimizer.param_groups]
            for groups_of_step in steps:
                optimizer.param_groups = groups_of_step
                live.reset_peaks()
                optimizer.step()
                workspace = max(workspace, live.peak_activations.total - live.live_bytes)
            flat = max(_total_bytes(group["params"]) for group in groups) if num_shards else 0
            for parameter in self.model.parameters():
                parameter.grad = None
        return OptimizerMemory(state, flat, workspace)

    def _persistent_tensors(self, batch: Batch | None = None) -> list[torch.Tensor]:
        """Return the tensors that exist throughout a step."""
        return [*self.model.parameters(), *self.model.buffers(), *(_batch_tensors(batch) if batch else ())]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast("cpu", dtype=DTYPES[self.precision])

    def _batch(self, rows: int) -> Batch:
        """Return a batch as the model gets it, with cached features for the inputs of frozen encoders."""
        batch = make_synthetic_batch(self.job, rows).map_tensors(self._fake_mode.from_tensor)
        inputs = dict(batch.inputs)
        for name in cached_inputs(self.job):
            part = inputs[name]
            assert part.features is not None, "synthetic rows have every input"
            features = {key: value for key, value in part.features.items() if key != WORD_STARTS}
            with self._fake_execution(), torch.no_grad(), self._autocast():
                cached = self.model.encoders[name].with_cached_outputs(features)  # type: ignore[operator]
            word_starts = {key: value for key, value in part.features.items() if key == WORD_STARTS}
            inputs[name] = replace(part, features={**cached, **word_starts})
        return replace(batch, inputs=inputs)


def _move_to_fake_cpu(model: nn.Module) -> None:
    """Replace tensors on the meta device with fake ones on the CPU, where autocast works."""
    replaced: dict[torch.Tensor, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if tensor not in replaced:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            replaced[tensor] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        return replaced[tensor]

    for module in model.modules():
        own = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                setattr(module, name, fake(value))


def _unpacked_forward(module: Recurrent, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run `Recurrent.forward` for rows of equal length; packing would read their lengths."""
    with torch.backends.mkldnn.flags(enabled=False):  # not used for packed rows
        states, _ = module.layers(steps)
    return module.dropout(states) * mask.unsqueeze(2)


def _module_size(name: str, module: nn.Module) -> ModuleSize:
    parameters = list(module.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ModuleSize(name, sum(parameter.numel() for parameter in parameters), trained)


def _flat_shard(parameters: list[nn.Parameter], num_shards: int) -> nn.Parameter:
    numbers = sum(parameter.numel() for parameter in parameters)
    aligned = -(-numbers // (2 * num_shards)) * 2 * num_shards
    return nn.Parameter(torch.empty(aligned // num_shards))


def _batch_tensors(batch: Batch) -> Iterator[torch.Tensor]:
    for part in batch.inputs.values():
        yield from (part.features or {}).values()
        yield part.index
    yield from batch.targets.values()
    yield batch.weights


def _total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

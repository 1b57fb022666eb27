"""Memory of one worker under each ZeRO stage and offload, as this version of DeepSpeed allocates it.

Trainable weights are float32 whatever the precision: autocast creates copies of lower precision, which count as
activations. The stages are those of Rajbhandari et al. (2020), "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models"; buffers are as in DeepSpeed's runtime/zero/stage_1_and_2.py, stage3.py and runtime/engine.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfuse.estimate.simulation import ModelSizes, OptimizerMemory, StepEstimate

_FLOAT32_BYTES = 4
"""Bytes of a float32."""
_ZERO_DEFAULTS = {
    "sub_group_size": 10**9,
    "stage3_max_live_parameters": 10**9,
    "stage3_prefetch_bucket_size": 5 * 10**7,
}
_STAGE_0_BUCKET = 5 * 10**8
"""Numbers in a bucket of the all-reduce of stage 0."""

BytesByCategory = dict[str, int]
"""Bytes by what they are for, such as `weights` or `activations`."""


@dataclass(frozen=True)
class Phase:
    """Peak memory of a worker in a phase of training."""

    name: str
    """Name of the phase."""
    device: BytesByCategory
    """Bytes on the device that computes."""
    host: BytesByCategory = field(default_factory=dict)
    """Bytes in host memory next to a GPU."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


@dataclass(frozen=True)
class WorkerFootprint:
    """Memory of one worker by phase of training."""

    sizes: ModelSizes
    """Sizes of the model."""
    step: StepEstimate
    """Cost of a micro-batch."""
    evaluation_activations: int
    """Bytes of activations of an evaluation batch."""
    optimizer: OptimizerMemory
    """Memory of the optimizer."""
    zero: Mapping[str, Any]
    """DeepSpeed's `zero_optimization`, from `build_deepspeed_config`."""
    world_size: int
    """Number of workers."""
    gradient_accumulation_steps: int
    """Micro-batches of an optimizer step."""
    on_gpu: bool
    """True if it is a GPU, where all of a buffer takes memory; on a CPU only its written pages do."""
    ema: bool = False
    """True if there is an exponential moving average of the trainable weights."""

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.zero.get("stage", 0))

    def phases(self) -> list[Phase]:
        """Return the phases of a training step, and evaluation."""
        always = self._persistent()
        gathered = self._gathered_weights()
        found = [Phase("forward and backward", _sum_by_category(always, gathered, self._backward()))]
        if self.stage in (1, 2):
            found.append(Phase("reduction of gradients", _sum_by_category(always, self._reduction())))
        found.append(Phase("optimizer step", _sum_by_category(always, self._optimizer_step())))
        evaluation = {"activations": self.evaluation_activations}
        found.append(
            Phase("evaluation", _sum_by_category(always, gathered, evaluation, self._swapped_weights()))
        )
        host = self._host_memory()
        return [Phase(phase.name, phase.device, host) for phase in found]

    def peak_phase(self) -> Phase:
        """Return the phase with the most bytes on the device."""
        return max(self.phases(), key=lambda phase: phase.total)

    @property
    def _trained(self) -> int:
        return self.sizes.trainable

    @property
    def _shard(self) -> int:
        """Bytes of this worker's shard of the trainable weights."""
        return -(-self._trained // self.world_size)

    @property
    def _bucket(self) -> int:
        whole = int(self.zero["reduce_bucket_size"]) * _FLOAT32_BYTES
        buffers = 2 if self.zero.get("overlap_comm") and self.stage in (1, 2) else 1
        return buffers * (whole if self.on_gpu else min(whole, self._trained))

    @property
    def _offloads_optimizer(self) -> bool:
        return self.on_gpu and _offload_device(self.zero, "offload_optimizer") != "none" and self.stage > 0

    @property
    def _offloads_parameters(self) -> bool:
        return self.on_gpu and _offload_device(self.zero, "offload_param") != "none" and self.stage == 3

    def _persistent(self) -> BytesByCategory:
        """Return the memory that is allocated throughout training."""
        amounts = {"weights": self.sizes.weights + self.sizes.buffers}
        if self.stage == 3:
            amounts["weights"] = self.sizes.buffers
            if not self._offloads_parameters:
                amounts["weights"] += -(-self.sizes.weights // self.world_size)
            amounts["buffers"] = self._bucket
            if not self._offloads_optimizer:
                amounts["gradients"] = self._shard
                amounts["buffers"] += min(self._shard, self._sub_group) if self.on_gpu else 0
        if self.stage in (1, 2) and not self._offloads_optimizer:
            amounts["master weights"] = self._shard
        if self._offloads_optimizer:
            amounts["buffers"] = amounts.get("buffers", 0) + self.sizes.largest_parameter
        else:
            amounts["optimizer"] = self.optimizer.state
        if self.ema:
            amounts["ema weights"] = self._trained
        if not self.on_gpu:
            amounts["checkpoint"] = self._checkpoint_copies
        return amounts

    @property
    def _checkpoint_copies(self) -> int:
        """Bytes of the buffers of the first worker that checkpoints are copied to."""
        moments = self.optimizer.state * (self.world_size if self.stage else 1)
        return self._trained + moments + (self._trained if self.ema else 0)

    def _gathered_weights(self) -> BytesByCategory:
        """Return the gathered parameters of stage 3, which stay while they will soon be used again."""
        if self.stage < 3 or self.world_size == 1:
            return {}
        live = self._option("stage3_max_live_parameters") + self._option("stage3_prefetch_bucket_size")
        return {"gathered weights": min(self.sizes.weights, live * _FLOAT32_BYTES)}

    def _backward(self) -> BytesByCategory:
        own, together = self.step.peak_activations, self.step.peak_total
        if self.stage == 3:
            return {"activations": own.activations, "buffers": self._reduction_buffer()}
        if self.stage == 2 and self.on_gpu:
            return {
                "activations": own.activations,
                "gradients": self._early_reduced_shard(),
                "buffers": self._bucket,
            }
        if self.gradient_accumulation_steps > 1:
            accumulated = self._trained if self.stage < 2 else self._shard + self._trained
            return {
                "activations": own.activations,
                "gradients": accumulated,
                "buffers": self._unused_bucket(),
            }
        return {
            "activations": together.activations,
            "gradients": together.gradients,
            "buffers": self._unused_bucket(),
        }

    def _early_reduced_shard(self) -> int:
        """Return the bytes of this worker's shard of gradients if some are reduced during the backward pass."""
        early = (
            self.gradient_accumulation_steps > 1
            or self._trained > int(self.zero["reduce_bucket_size"]) * _FLOAT32_BYTES
        )
        return self._shard if early and not self._offloads_optimizer else 0

    def _unused_bucket(self) -> int:
        """Return the bytes of the bucket of stage 1, which exists from the first gradient and is filled at the end."""
        return self._bucket if self.stage == 1 and self.on_gpu else 0

    def _reduction(self) -> BytesByCategory:
        """Return a full bucket, and its copy for the other workers or this worker's shard of it."""
        part = 0 if self._offloads_optimizer else self._shard
        return {"gradients": part, "buffers": self._bucket + max(0, self._reduction_buffer() - part)}

    def _reduction_buffer(self) -> int:
        """Return the bytes of the flat gradients that are reduced over the workers."""
        if self.world_size == 1:
            return 0
        bucket = int(self.zero["reduce_bucket_size"]) if self.stage else _STAGE_0_BUCKET
        return min(self._trained, bucket * _FLOAT32_BYTES)

    def _optimizer_step(self) -> BytesByCategory:
        if self._offloads_optimizer:
            return {}
        if self.stage == 0:
            return {
                "gradients": self._trained,
                "buffers": max(self.optimizer.workspace, self._reduction_buffer()),
            }
        flat = (
            self.optimizer.flat_gradients
            if self.stage < 3
            else min(self.optimizer.flat_gradients, self._sub_group)
        )
        gradients = {"gradients": self._shard} if self.stage < 3 else {}
        return {**gradients, "buffers": flat + self.optimizer.workspace}

    def _swapped_weights(self) -> BytesByCategory:
        """Return the copy of the trainable weights while their average is evaluated."""
        return {"ema weights": self._trained} if self.ema else {}

    @property
    def _sub_group(self) -> int:
        return self._option("sub_group_size") * _FLOAT32_BYTES

    def _option(self, name: str) -> int:
        return int(self.zero.get(name, _ZERO_DEFAULTS[name]))

    def _host_memory(self) -> BytesByCategory:
        """Return the host memory of a worker that trains on a GPU."""
        amounts: BytesByCategory = {"checkpoint": self._checkpoint_copies} if self.on_gpu else {}
        if self._offloads_optimizer:
            copies = 2 if self.stage < 3 else 1  # the weights in transit, and the gradients
            amounts |= {
                "master weights": self._shard,
                "optimizer": self.optimizer.state,
                "gradients": self._shard if self.stage < 3 else 2 * self._shard,
                "buffers": (copies - 1) * self._shard
                + (self.sizes.largest_parameter if self.stage < 3 else 0),
            }
        if self._offloads_parameters:
            amounts["weights"] = -(-self.sizes.weights // self.world_size)
        return amounts


def _offload_device(zero: Mapping[str, Any], key: str) -> str:
    return str((zero.get(key) or {}).get("device", "none"))


def _sum_by_category(*parts: BytesByCategory) -> BytesByCategory:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def offload_names(zero: Mapping[str, Any]) -> str:
    """Return the name of what is offloaded: `none`, `optimizer`, or `optimizer+parameters`."""
    return "+".join(_offload_targets(zero)) or "none"


def _offload_targets(zero: Mapping[str, Any]) -> Iterator[str]:
    for name, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if _offload_device(zero, key) != "none":
            yield name

"""Bytes of one worker under each ZeRO stage and offload, as this version of DeepSpeed lays them out.

Trained weights are float32 whatever the precision: autocast makes copies of lower precision while it computes, which
count among the activations. Rajbhandari et al. (2020) describe what the stages divide; which buffers hold it meanwhile, and
when, was read from DeepSpeed's sources (runtime/zero/stage_1_and_2.py, stage3.py, runtime/engine.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfuse.train.plan.simulation import Optimizer, Sizes, Step

_NUMBER = 4
"""Bytes of a float32."""
_DEFAULTS = {
    "sub_group_size": 10**9,
    "stage3_max_live_parameters": 10**9,
    "stage3_prefetch_bucket_size": 5 * 10**7,
}
_STAGE_0_BUCKET = 5 * 10**8
"""Numbers that stage 0 reduces at a time."""

Amounts = dict[str, int]


@dataclass(frozen=True)
class Phase:
    """What lives on a worker at the worst moment of a part of training, bytes by what they are for."""

    name: str
    device: Amounts
    host: Amounts = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.device.values())


@dataclass(frozen=True)
class Worker:
    """What decides how much a worker holds."""

    sizes: Sizes
    step: Step
    evaluation: int
    """Bytes of activations of an evaluation batch."""
    optimizer: Optimizer
    zero: Mapping[str, Any]
    """DeepSpeed's `zero_optimization`, as `full_config` gives it."""
    world: int
    accumulate: int
    on_gpu: bool
    """A host gives a process only those pages of a buffer that it has written; a GPU gives all of them."""
    average: bool = False
    """Whether an average of the trained weights is kept."""

    @property
    def stage(self) -> int:
        return int(self.zero.get("stage", 0))

    def phases(self) -> list[Phase]:
        """The parts of a training step, and evaluation."""
        always = self._always()
        gathered = self._gathered()
        found = [Phase("forward and backward", _add(always, gathered, self._backward()))]
        if self.stage in (1, 2):
            found.append(Phase("reduction of gradients", _add(always, self._reduction())))
        found.append(Phase("optimizer step", _add(always, self._optimizer_step())))
        evaluation = {"activations": self.evaluation}
        found.append(Phase("evaluation", _add(always, gathered, evaluation, self._swapped())))
        host = self._host()
        return [Phase(phase.name, phase.device, host) for phase in found]

    def worst(self) -> Phase:
        """The phase that needs most on the device."""
        return max(self.phases(), key=lambda phase: phase.total)

    @property
    def _trained(self) -> int:
        return self.sizes.trained

    @property
    def _share(self) -> int:
        """Of what is trained."""
        return -(-self._trained // self.world)

    @property
    def _bucket(self) -> int:
        whole = int(self.zero["reduce_bucket_size"]) * _NUMBER
        buffers = 2 if self.zero.get("overlap_comm") and self.stage in (1, 2) else 1
        return buffers * (whole if self.on_gpu else min(whole, self._trained))

    @property
    def _offloads_optimizer(self) -> bool:
        return self.on_gpu and _device(self.zero, "offload_optimizer") != "none" and self.stage > 0

    @property
    def _offloads_parameters(self) -> bool:
        return self.on_gpu and _device(self.zero, "offload_param") != "none" and self.stage == 3

    def _always(self) -> Amounts:
        """What is there from step to step."""
        amounts = {"weights": self.sizes.weights + self.sizes.buffers}
        if self.stage == 3:
            amounts["weights"] = self.sizes.buffers
            if not self._offloads_parameters:
                amounts["weights"] += -(-self.sizes.weights // self.world)
            amounts["buffers"] = self._bucket
            if not self._offloads_optimizer:
                amounts["gradients"] = self._share
                amounts["buffers"] += min(self._share, self._sub_group) if self.on_gpu else 0
        if self.stage in (1, 2) and not self._offloads_optimizer:
            amounts["master weights"] = self._share
        if self._offloads_optimizer:
            amounts["buffers"] = amounts.get("buffers", 0) + self.sizes.largest
        else:
            amounts["optimizer"] = self.optimizer.state
        if self.average:
            amounts["averaged weights"] = self._trained
        if not self.on_gpu:
            amounts["checkpoint"] = self._copies
        return amounts

    @property
    def _copies(self) -> int:
        """What the first worker keeps of the last checkpoint, whole, to copy the next one over it."""
        moments = self.optimizer.state * (self.world if self.stage else 1)
        return self._trained + moments + (self._trained if self.average else 0)

    def _gathered(self) -> Amounts:
        """Whole parameters under stage 3: they stay while they will soon be used again."""
        if self.stage < 3 or self.world == 1:
            return {}
        live = self._option("stage3_max_live_parameters") + self._option("stage3_prefetch_bucket_size")
        return {"gathered weights": min(self.sizes.weights, live * _NUMBER)}

    def _backward(self) -> Amounts:
        own, together = self.step.most_activations, self.step.most_together
        if self.stage == 3:
            return {"activations": own.activations, "buffers": self._reduced_at_once()}
        if self.stage == 2 and self.on_gpu:
            return {"activations": own.activations, "gradients": self._early_share(), "buffers": self._bucket}
        if self.accumulate > 1:
            kept = self._trained if self.stage < 2 else self._share + self._trained
            return {"activations": own.activations, "gradients": kept, "buffers": self._unused_bucket()}
        return {
            "activations": together.activations,
            "gradients": together.gradients,
            "buffers": self._unused_bucket(),
        }

    def _early_share(self) -> int:
        """This worker's part of the gradients, where some are reduced before the backward pass is over."""
        early = self.accumulate > 1 or self._trained > int(self.zero["reduce_bucket_size"]) * _NUMBER
        return self._share if early and not self._offloads_optimizer else 0

    def _unused_bucket(self) -> int:
        """Stage 1 has its bucket from the first gradient on and fills it in the end."""
        return self._bucket if self.stage == 1 and self.on_gpu else 0

    def _reduction(self) -> Amounts:
        """A full bucket, and its copy for the others or this worker's part of it."""
        part = 0 if self._offloads_optimizer else self._share
        return {"gradients": part, "buffers": self._bucket + max(0, self._reduced_at_once() - part)}

    def _reduced_at_once(self) -> int:
        """Gradients are laid side by side to be reduced with the other workers."""
        if self.world == 1:
            return 0
        bucket = int(self.zero["reduce_bucket_size"]) if self.stage else _STAGE_0_BUCKET
        return min(self._trained, bucket * _NUMBER)

    def _optimizer_step(self) -> Amounts:
        if self._offloads_optimizer:
            return {}
        if self.stage == 0:
            return {
                "gradients": self._trained,
                "buffers": max(self.optimizer.workspace, self._reduced_at_once()),
            }
        flat = self.optimizer.flat if self.stage < 3 else min(self.optimizer.flat, self._sub_group)
        gradients = {"gradients": self._share} if self.stage < 3 else {}
        return {**gradients, "buffers": flat + self.optimizer.workspace}

    def _swapped(self) -> Amounts:
        """The trained weights stand aside while their average is evaluated."""
        return {"averaged weights": self._trained} if self.average else {}

    @property
    def _sub_group(self) -> int:
        return self._option("sub_group_size") * _NUMBER

    def _option(self, name: str) -> int:
        return int(self.zero.get(name, _DEFAULTS[name]))

    def _host(self) -> Amounts:
        """What is kept in host memory beside a GPU."""
        amounts: Amounts = {"checkpoint": self._copies} if self.on_gpu else {}
        if self._offloads_optimizer:
            copies = 2 if self.stage < 3 else 1  # the weights in transit, and the gradients
            amounts |= {
                "master weights": self._share,
                "optimizer": self.optimizer.state,
                "gradients": self._share if self.stage < 3 else 2 * self._share,
                "buffers": (copies - 1) * self._share + (self.sizes.largest if self.stage < 3 else 0),
            }
        if self._offloads_parameters:
            amounts["weights"] = -(-self.sizes.weights // self.world)
        return amounts


def _device(zero: Mapping[str, Any], key: str) -> str:
    return str((zero.get(key) or {}).get("device", "none"))


def _add(*parts: Amounts) -> Amounts:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def offload_names(zero: Mapping[str, Any]) -> str:
    """`none`, `optimizer`, or `optimizer+parameters`."""
    return "+".join(_offloaded(zero)) or "none"


def _offloaded(zero: Mapping[str, Any]) -> Iterator[str]:
    for name, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if _device(zero, key) != "none":
            yield name

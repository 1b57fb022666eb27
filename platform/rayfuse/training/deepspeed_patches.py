"""Changes to DeepSpeed's behavior: everything in Rayfuse that relies on its private attributes.

Each change lists the attributes it relies on in `PATCHED_ATTRIBUTES`. They are checked before they are used, and a test
checks them in the installed version.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from rayfuse.errors import RayfuseError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SUPPORTED_VERSIONS = ((0, 19, 8), (0, 20, 0))
"""The first DeepSpeed version that the patches were tested with, and the first that they may not fit any more."""

PATCHED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "module": ("__compatible_ops__",),
    "engine": (
        "_global_grad_norm",
        "buffered_allreduce_fallback",
        "clip_fp32_gradients",
        "get_global_grad_norm",
        "zero_grad",
    ),
    "zero_1_2_optimizer": ("_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state"),
    "zero_3_optimizer": ("fp32_partitioned_groups_flat", "sub_group_to_group_id"),
}
"""Attributes that the patches set or call: of the module deepspeed.ops, of an engine, and of ZeRO's optimizers."""

_LOG = logging.getLogger(__name__)


def check_version(installed: str | None = None) -> None:
    """Log a warning if the installed DeepSpeed is outside of `SUPPORTED_VERSIONS`."""
    installed = installed or version("deepspeed")
    first, end = (".".join(map(str, bound)) for bound in SUPPORTED_VERSIONS)
    if not SUPPORTED_VERSIONS[0] <= _parse_version(installed) < SUPPORTED_VERSIONS[1]:
        _LOG.warning(
            "DeepSpeed %s is not tested with Rayfuse; install deepspeed>=%s,<%s", installed, first, end
        )


def import_without_mlflow() -> None:
    """Import DeepSpeed in a worker, which has no use for MLflow: DeepSpeed's autotuner imports it where it is installed."""
    hidden = sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    try:
        importlib.import_module("deepspeed")
    finally:
        if hidden is None:
            del sys.modules["mlflow"]


def disable_shared_memory_allreduce() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPUs; gloo is used instead.

    Compilation with g++ takes over a minute at the first start, and a process killed meanwhile leaves a lock on which
    every later start waits.
    """
    import deepspeed.ops

    _require(deepspeed.ops, "module")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def optimize_stage_zero(engine: "DeepSpeedEngine", world_size: int) -> None:
    """Replace operations of ZeRO stage 0 that iterate over the whole model with fewer and larger ones.

    Clipping also keeps the norm of the gradient for `engine.get_global_grad_norm()`, which DeepSpeed discards.
    """
    _require(engine, "engine")
    parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    def fill_missing_gradients(grads: Any = None, elements_per_buffer: int = 0) -> None:
        """Do what an all-reduce with one worker amounts to: set missing gradients to zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    engine.clip_fp32_gradients, engine.zero_grad = clip_fp32_gradients, zero_grad
    if world_size == 1:
        engine.buffered_allreduce_fallback = fill_missing_gradients


def link_optimizer_states(engine: "DeepSpeedEngine") -> None:
    """Link the parameters of all groups to their optimizer state under ZeRO stages 1 and 2.

    DeepSpeed 0.19 does it once, after the step of the first group, before torch's optimizer has created the state of
    the other groups.
    """
    if engine.zero_optimization_stage() in (1, 2):
        _require(engine.optimizer, "zero_1_2_optimizer")
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def sharded_states(engine: "DeepSpeedEngine") -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the states in torch's optimizer under ZeRO stage 3, each with the number of its parameter group."""
    optimizer = engine.optimizer
    _require(optimizer, "zero_3_optimizer")
    for number, part in enumerate(optimizer.fp32_partitioned_groups_flat):
        yield optimizer.sub_group_to_group_id[number], optimizer.optimizer.state.get(part, {})


def _require(target: Any, kind: str) -> None:
    """Raise RayfuseError if a patched attribute is gone."""
    missing = [name for name in PATCHED_ATTRIBUTES[kind] if not hasattr(target, name)]
    if missing:
        first, end = (".".join(map(str, bound)) for bound in SUPPORTED_VERSIONS)
        raise RayfuseError(
            f"DeepSpeed {version('deepspeed')} has no {', '.join(missing)} that Rayfuse relies on; "
            f"install deepspeed>={first},<{end}"
        )


def _parse_version(text: str) -> tuple[int, ...]:
    numbers = text.split("+")[0].split(".")[:3]
    return tuple(int("".join(filter(str.isdigit, number)) or 0) for number in numbers)

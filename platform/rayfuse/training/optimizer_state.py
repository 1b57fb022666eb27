"""Gather and restore weights and optimizer state by parameter name, under any ZeRO stage.

`KEY/NAME` is a tensor of the optimizer's state of a parameter: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer`
of SGD and Muon, `exp_avg` of Lion, `row_var`, `col_var` and `variance` of Adafactor. `step` has the number of optimizer
steps of each parameter group.
State of another shape than its parameter exists under stage 0 alone (`rayfuse.spec.optimizers`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from rayfuse.errors import DataError
from rayfuse.model.fused import trainable_parameters
from rayfuse.model.model_io import load_weights
from rayfuse.training.deepspeed_patches import link_optimizer_states, sharded_states

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_STEP = "step"


def gather_optimizer_state(engine: "DeepSpeedEngine") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the full tensors of the optimizer state by name; nothing before the first step.

    Every rank must iterate over all of them.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    link_optimizer_states(engine)
    sharded_keys = _sharded_keys(engine)
    steps = {number: state[_STEP] for number, state in _states_by_group(engine) if _STEP in state}
    if steps:
        yield _STEP, torch.tensor([float(steps.get(number, 0)) for number in range(_num_groups(engine))])
    for name, parameter in trainable_parameters(engine.module).items():
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            for key in _tensor_keys(state):
                yield f"{key}/{name}", state[key]
        else:
            for key in sharded_keys:
                yield f"{key}/{name}", safe_get_full_optimizer_state(parameter, key)


def restore_optimizer_state(
    engine: "DeepSpeedEngine", saved: Mapping[str, torch.Tensor], noop_step: Callable[[], None]
) -> None:
    """Restore the state that `gather_optimizer_state` yielded; every rank must call it.

    DeepSpeed creates its optimizer state at the first step, so `noop_step` takes one that changes nothing (gradients
    and learning rate of zero) before the state is overwritten. Raises DataError if the state is of another optimizer
    or model.
    """
    if not saved:
        return
    noop_step()
    link_optimizer_states(engine)
    sharded_keys = _sharded_keys(engine)
    for name, parameter in trainable_parameters(engine.module).items():
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            for key in _tensor_keys(state):
                state[key].copy_(_saved_tensor(saved, key, name))
        else:
            for key in sharded_keys:
                set_full_tensor(engine, parameter, _saved_tensor(saved, key, name), key)
    for number, state in _states_by_group(engine):
        if _STEP in state:
            state[_STEP].fill_(float(saved[_STEP][number]))


def load_engine_weights(engine: "DeepSpeedEngine", weights: Mapping[str, torch.Tensor]) -> None:
    """Load full weights by name into the model and into the optimizer's float32 copy; every rank must call it.

    Raises DataError where names or shapes do not fit the model.
    """
    import deepspeed

    model, stage = engine.module, engine.zero_optimization_stage()
    parameters = trainable_parameters(model)
    gathered = (
        deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0)
        if stage == 3
        else nullcontext()
    )
    with gathered:
        if stage < 3 or torch.distributed.get_rank() == 0:
            load_weights(model, weights)
    if stage > 0:
        for name, parameter in parameters.items():
            set_full_tensor(engine, parameter, weights[name])


def set_full_tensor(
    engine: "DeepSpeedEngine", parameter: torch.nn.Parameter, value: torch.Tensor, key: str | None = None
) -> None:
    """Overwrite ZeRO's float32 copy of a parameter with a full tensor, or the optimizer state `key` of it.

    Under stage 3 each rank has an equal part, the last one padded; DeepSpeed 0.19 splits only tensors without padding.
    """
    from deepspeed import utils

    value = value.to(engine.device)
    if engine.zero_optimization_stage() == 3:
        part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        mine = value.flatten()[torch.distributed.get_rank() * part.numel() :][: part.numel()]
        value = torch.nn.functional.pad(mine, (0, part.numel() - mine.numel()))
        set_parameter, set_state = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
    else:
        set_parameter, set_state = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if key is None:
        set_parameter(parameter, value)
    else:
        set_state(parameter, value, key)


def _optimizer_states(engine: "DeepSpeedEngine") -> Iterator[dict[str, Any]]:
    """Return the states in torch's optimizer: of parameters, or of ZeRO's flat buffers of several parameters."""
    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    return (state for state in optimizer.state.values() if state)


def _num_groups(engine: "DeepSpeedEngine") -> int:
    return len(engine.optimizer.param_groups)


def _states_by_group(engine: "DeepSpeedEngine") -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the states in torch's optimizer, each with the number of its parameter group."""
    if engine.zero_optimization_stage() == 3:
        yield from sharded_states(engine)
        return
    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            yield number, optimizer.state.get(parameter, {})


def _sharded_keys(engine: "DeepSpeedEngine") -> list[str]:
    return list(dict.fromkeys(key for state in _optimizer_states(engine) for key in _tensor_keys(state)))


def _tensor_keys(state: Mapping[str, Any]) -> list[str]:
    return [key for key, value in state.items() if torch.is_tensor(value) and key != _STEP]


def _saved_tensor(saved: Mapping[str, torch.Tensor], key: str, name: str) -> torch.Tensor:
    if f"{key}/{name}" not in saved:
        raise DataError(
            f"the checkpoint has no {key} of {name}, so it was written with another optimizer or model; "
            "train with the job in the checkpoint's job.json, or start a new run with --no-resume"
        )
    return saved[f"{key}/{name}"]

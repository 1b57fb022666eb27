"""What an optimizer keeps of each parameter, by the parameter's name, whole, and put back under any ZeRO stage.

`KEY/NAME` is a tensor of the optimizer's own: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of SGD and Muon,
`exp_avg` of Lion, `row_var`, `col_var` and `variance` of Adafactor. `step` counts the optimizer's steps. What has
another shape than its parameter exists under stage 0 alone, where nothing is divided (`spec.optimizers.refusal`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from rayfuse.errors import DataError
from rayfuse.model.fused import trainable_parameters

_STEP = "step"


def gather_optimizer(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's state by name, whole, one tensor after the other; nothing before its first step.

    Every rank must go through them.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_optimizer_states(engine)
    divided = _divided(engine)
    if steps := [state[_STEP] for state in _states(engine) if _STEP in state]:
        yield _STEP, steps[0].float()
    for name, parameter in trainable_parameters(engine.module).items():
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            for key in _keys(state):
                yield f"{key}/{name}", state[key]
        else:
            for key in divided:
                yield f"{key}/{name}", safe_get_full_optimizer_state(parameter, key)


def restore_optimizer(engine: Any, saved: Mapping[str, torch.Tensor], empty_step: Callable[[], None]) -> None:
    """Put back what `gather_optimizer` gave. Every rank must call it.

    DeepSpeed makes its optimizer state at the first step, so `empty_step` takes one that changes nothing
    (gradients and rate zero) before the state is overwritten. Raises DataError where another optimizer gave it.
    """
    if not saved:
        return
    empty_step()
    _link_optimizer_states(engine)
    divided = _divided(engine)
    for name, parameter in trainable_parameters(engine.module).items():
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            for key in _keys(state):
                state[key].copy_(_of(saved, key, name))
        else:
            for key in divided:
                set_whole(engine, parameter, _of(saved, key, name), key)
    for state in _states(engine):
        if _STEP in state:
            state[_STEP].fill_(float(saved[_STEP]))


def set_whole(
    engine: Any, parameter: torch.nn.Parameter, value: torch.Tensor, key: str | None = None
) -> None:
    """Put a whole tensor in the place of ZeRO's own float32 copy of a parameter, or of a part of its optimizer state.

    Under stage 3 each rank keeps an equal part, the last padded, and DeepSpeed 0.19 cuts only tensors that need none.
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


def _states(engine: Any) -> Iterator[dict[str, Any]]:
    """The states that torch's optimizer has made: of parameters, or of ZeRO's flat parts of many."""
    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    return (state for state in optimizer.state.values() if state)


def _divided(engine: Any) -> list[str]:
    """What ZeRO's flat parts have."""
    return list(dict.fromkeys(key for state in _states(engine) for key in _keys(state)))


def _keys(state: Mapping[str, Any]) -> list[str]:
    return [key for key, value in state.items() if torch.is_tensor(value) and key != _STEP]


def _of(saved: Mapping[str, torch.Tensor], key: str, name: str) -> torch.Tensor:
    if f"{key}/{name}" not in saved:
        raise DataError(
            f"the checkpoint has no {key} of {name}, so another optimizer or model wrote it; "
            "train with what the checkpoint's job.json says, or begin a new run"
        )
    return saved[f"{key}/{name}"]


def _link_optimizer_states(engine: Any) -> None:
    """Let ZeRO 1 and 2 find the state of every parameter group.

    DeepSpeed 0.19 links parameters to their state once, after the step of the first group, when torch's
    optimizer has made no state yet for the others.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()

"""A checkpoint is the trained tensors by name, their optimizer state by name, and the position.

It does not depend on the number of workers or on the ZeRO stage: tensors are gathered whole, and
each worker takes its part of them when it starts again.

    CHECKPOINT/model.safetensors       trained tensors by name; with train.ema, their average
    CHECKPOINT/trained.safetensors     only with train.ema: the tensors as they were trained
    CHECKPOINT/optimizer.safetensors   `exp_avg/NAME` and `exp_avg_sq/NAME`, float32
    CHECKPOINT/position.json           epochs and optimizer steps done, metrics by epoch
    CHECKPOINT/job.json                the resolved job
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import torch

from rayfuse.errors import DataError
from rayfuse.model.folder import read_tensors
from rayfuse.model.fused import trainable_parameters, trained_tensors
from rayfuse.spec.job import Job

_MOMENTS = ("exp_avg", "exp_avg_sq")
MODEL_FILE = "model.safetensors"
_TRAINED_FILE = "trained.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_POSITION_FILE = "position.json"
_JOB_FILE = "job.json"
_FITTED_FILE = "fitted.safetensors"


@dataclass
class Position:
    """How far training is, and the validation metrics of each epoch.

    The rows of every step, and what it draws at random, are a function of the job's seed and of this, so nothing
    else has to be kept of either.
    """

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimizer steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    stopped_early: bool = False
    epoch_step: int = 0
    """Steps done of the epoch that has begun."""
    guard: dict[str, Any] = field(default_factory=dict)
    """See `Guard.state`."""


def gather_model(engine: Any) -> dict[str, torch.Tensor]:
    """The trained tensors, whole, on the CPU. Every rank must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = dict(trained_tensors(engine.module))
    if engine.zero_optimization_stage() > 0:
        for name, parameter in trainable_parameters(engine.module).items():
            whole[name] = safe_get_full_fp32_param(parameter)
    return {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}


def gather_optimizer(engine: Any) -> dict[str, torch.Tensor]:
    """The optimizer's moments of each trained parameter, whole, on the CPU. Every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_optimizer_states(engine)
    found = {}
    for name, parameter in trainable_parameters(engine.module).items():
        for moment in _MOMENTS:
            if engine.zero_optimization_stage() > 0:
                tensor = safe_get_full_optimizer_state(parameter, moment)
            else:  # a parameter that never got a gradient has no state
                tensor = engine.optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
            found[f"{moment}/{name}"] = tensor.detach().cpu().clone()
    return found


def restore_optimizer(
    engine: Any, moments: Mapping[str, torch.Tensor], steps: int, empty_step: Callable[[], None]
) -> None:
    """Put the moments back. Every rank must call it.

    DeepSpeed makes its optimizer state at the first step, so `empty_step` takes one that changes nothing
    (gradients and rate zero) before the state is overwritten.
    """
    empty_step()
    _link_optimizer_states(engine)
    for name, parameter in trainable_parameters(engine.module).items():
        for moment in _MOMENTS:
            value = moments[f"{moment}/{name}"]
            if engine.zero_optimization_stage() > 0:
                set_whole(engine, parameter, value, moment)
            elif moment in engine.optimizer.state[parameter]:
                engine.optimizer.state[parameter][moment].copy_(value)
    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(float(steps))


def set_whole(
    engine: Any, parameter: torch.nn.Parameter, value: torch.Tensor, moment: str | None = None
) -> None:
    """Put a whole tensor in the place of ZeRO's own float32 copy of a parameter, or of one of its moments.

    Under stage 3 each rank keeps an equal part, the last padded, and DeepSpeed 0.19 cuts only tensors that need none.
    """
    from deepspeed import utils

    value = value.to(engine.device)
    if engine.zero_optimization_stage() == 3:
        part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        mine = value.flatten()[torch.distributed.get_rank() * part.numel() :][: part.numel()]
        value = torch.nn.functional.pad(mine, (0, part.numel() - mine.numel()))
        set_parameter, set_moment = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
    else:
        set_parameter, set_moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if moment is None:
        set_parameter(parameter, value)
    else:
        set_moment(parameter, value, moment)


def _link_optimizer_states(engine: Any) -> None:
    """Let ZeRO 1 and 2 find the state of every parameter group.

    DeepSpeed 0.19 links parameters to their state once, after the step of the first group, when torch's
    optimizer has made no state yet for the others.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def write_checkpoint(
    folder: Path,
    job: Job,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    position: Position,
    average: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the gathered state, with the average of the parameters if one is kept; one rank does."""
    from safetensors.torch import save_file

    if average is not None:
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, folder / _TRAINED_FILE)
        model = {**model, **{name: tensor.cpu() for name, tensor in average.items()}}
    save_file({name: tensor.contiguous() for name, tensor in model.items()}, folder / MODEL_FILE)
    save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, folder / _OPTIMIZER_FILE)
    (folder / _POSITION_FILE).write_text(json.dumps(asdict(position)))
    (folder / _JOB_FILE).write_text(job.model_dump_json(indent=1))


def keep_fitted(fitted: Mapping[str, Any], run: str) -> None:
    """Write what was fitted after training to the folder of a run: numbers and arrays, by the name of their buffer."""
    from safetensors.torch import save

    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in fitted.items()}
    with fsspec.open(f"{run}/{_FITTED_FILE}", "wb") as file:
        file.write(save(tensors))


def read_fitted(run: str) -> dict[str, torch.Tensor]:
    """The buffers that `keep_fitted` wrote."""
    from safetensors.torch import load

    with fsspec.open(f"{run}/{_FITTED_FILE}", "rb") as file:
        return load(file.read())


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's model: those to evaluate and to export."""
    return read_tensors(folder / MODEL_FILE)


def read_trained(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors from which training goes on."""
    trained = folder / _TRAINED_FILE
    return read_tensors(trained if trained.exists() else folder / MODEL_FILE)


def read_position(folder: Path) -> Position:
    """How far training was at a checkpoint."""
    try:
        return Position(**json.loads((folder / _POSITION_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: not a whole checkpoint: {error}") from None


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Position]:
    """The model's tensors, moments and position. Raises DataError where the folder is no whole checkpoint."""
    return read_model(folder), read_tensors(folder / _OPTIMIZER_FILE), read_position(folder)

"""A checkpoint is the trained tensors by name, their optimizer state by name, and the position.

It does not depend on the number of workers or on the ZeRO stage: tensors are gathered whole, and
each worker takes its part of them when it starts again.

    CHECKPOINT/model.safetensors       trained tensors by name; with train.ema, their average
    CHECKPOINT/trained.safetensors     only with train.ema: the tensors as they were trained
    CHECKPOINT/optimizer.safetensors   `exp_avg/NAME`…: see `rayfuse.train.optimizer_state`
    CHECKPOINT/position.json           epochs and optimizer steps done, metrics by epoch
    CHECKPOINT/job.json                the resolved job
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import torch

from rayfuse.errors import DataError
from rayfuse.model.folder import read_tensors
from rayfuse.model.fused import trained_tensors
from rayfuse.spec.job import Job
from rayfuse.train.tensor_file import write_tensors

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
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """See `read_loss_scale`."""


def gather_model(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained tensors by name, whole, one after the other. Every rank must go through them."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, tensor in trained_tensors(engine.module).items():
        divided = engine.zero_optimization_stage() > 0 and isinstance(tensor, torch.nn.Parameter)
        yield name, safe_get_full_fp32_param(tensor) if divided else tensor


def read_loss_scale(engine: Any) -> dict[str, Any]:
    """By what fp16 multiplies losses, and how long it has held; nothing in other precisions."""
    scaler = _loss_scaler(engine)
    return scaler.state_dict() if scaler else {}


def restore_loss_scale(engine: Any, saved: Mapping[str, Any]) -> None:
    """Put back what `read_loss_scale` gave. In another precision than that of the checkpoint, a scale begins anew."""
    scaler = _loss_scaler(engine)
    if scaler and saved:
        scaler.load_state_dict(dict(saved))


def _loss_scaler(engine: Any) -> Any:
    """PyTorch's: DeepSpeed has it in the engine under stage 0, else in its optimizer."""
    return engine.torch_autocast_z0_gradscaler or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def write_checkpoint(
    folder: Path,
    job: Job,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    position: Position,
    average: Mapping[str, torch.Tensor] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Write the gathered state, with the average of the parameters if one is kept; one rank does.

    `pause` is called between small parts of it.
    """
    if average is not None:
        write_tensors(folder / _TRAINED_FILE, model, pause)
        model = {**model, **average}
    write_tensors(folder / MODEL_FILE, model, pause)
    write_tensors(folder / _OPTIMIZER_FILE, optimizer, pause)
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
    """The model's tensors, the optimizer's and the position. Raises DataError where the folder is no whole checkpoint."""
    return read_model(folder), read_tensors(folder / _OPTIMIZER_FILE), read_position(folder)

"""The training state of a checkpoint: trainable tensors by name, their optimizer state by name, and the position.

It is independent of the number of workers and of the ZeRO stage: tensors are gathered, and on resume each worker
takes its part of them.

    CHECKPOINT/model.safetensors         trainable tensors by name; with train.ema, their average
    CHECKPOINT/raw_weights.safetensors   only with train.ema: the tensors that the optimizer updates
    CHECKPOINT/optimizer.safetensors     `exp_avg/NAME`…: see `rayfuse.training.optimizer_state`
    CHECKPOINT/train_state.json          epochs and optimizer steps done, metrics by epoch
    CHECKPOINT/job.json                  the resolved job
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import torch

from rayfuse.errors import DataError
from rayfuse.model.fused import trainable_state_dict
from rayfuse.model.model_io import load_safetensors
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MODEL_FILE = "model.safetensors"
_RAW_WEIGHTS_FILE = "raw_weights.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_TRAIN_STATE_FILE = "train_state.json"
_JOB_FILE = "job.json"
_CALIBRATION_FILE = "calibration.safetensors"

HostBuffers = dict[str, torch.Tensor]
"""Tensors on the CPU by name."""


@dataclass
class TrainState:
    """Position of a training run, and the validation metrics of each epoch.

    The rows of every step and all that it draws at random are functions of the job's seed and of this state, so that
    neither is stored.
    """

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimizer steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics of each epoch done."""
    stopped_early: bool = False
    """True if early stopping or the time budget ended the training."""
    seconds: float = 0.0
    """Seconds of training, including validation, over all resumes."""
    epoch_step: int = 0
    """Optimizer steps done of the epoch that has begun."""
    loss_guard: dict[str, Any] = field(default_factory=dict)
    """State of the loss guard (`LossGuard.state_dict`)."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler (`read_loss_scale`)."""


def gather_model(engine: "DeepSpeedEngine") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the trainable tensors by name, gathered from all ranks. Every rank must consume the iterator."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, tensor in trainable_state_dict(engine.module).items():
        partitioned = engine.zero_optimization_stage() > 0 and isinstance(tensor, torch.nn.Parameter)
        yield name, safe_get_full_fp32_param(tensor) if partitioned else tensor


def copy_to_cpu(
    tensors: Iterable[tuple[str, torch.Tensor]], buffers: HostBuffers | None = None
) -> HostBuffers:
    """Copy tensors by name into `buffers`, which are allocated where absent, and return the copies.

    Reused memory is faster, because new pages cost more than the copy. Tensors are copied one by one, so an iterator
    that gathers them holds one at a time. Memory that a GPU copies to is pinned.
    """
    buffers = {} if buffers is None else buffers
    copied: HostBuffers = {}
    on_gpu = False
    for name, tensor in tensors:
        if name not in buffers:
            buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copied[name] = buffers[name].copy_(tensor.detach(), non_blocking=True)
        on_gpu |= tensor.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    return copied


def read_loss_scale(engine: "DeepSpeedEngine") -> dict[str, Any]:
    """Return the state of the fp16 loss scaler; empty in other precisions."""
    scaler = _loss_scaler(engine)
    return scaler.state_dict() if scaler else {}


def restore_loss_scale(engine: "DeepSpeedEngine", saved: Mapping[str, Any]) -> None:
    """Restore what `read_loss_scale` returned; without effect where the precision has changed."""
    scaler = _loss_scaler(engine)
    if scaler and saved:
        scaler.load_state_dict(dict(saved))


def _loss_scaler(engine: Any) -> Any:
    """Return PyTorch's scaler: DeepSpeed holds it in the engine under stage 0, otherwise in its optimizer."""
    return engine.torch_autocast_z0_gradscaler or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def write_checkpoint(
    folder: Path,
    job: Job,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    train_state: TrainState,
    ema: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the gathered state, with the moving average of the parameters if there is one, on one rank."""
    if ema is not None:
        write_tensors(folder / _RAW_WEIGHTS_FILE, model)
        model = {**model, **ema}
    write_tensors(folder / MODEL_FILE, model)
    write_tensors(folder / _OPTIMIZER_FILE, optimizer)
    (folder / _TRAIN_STATE_FILE).write_text(json.dumps(asdict(train_state)))
    (folder / _JOB_FILE).write_text(job.model_dump_json(indent=1))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file with the permissions of other files of this process.

    Raises:
        OSError: With the operating system's errno, such as ENOSPC, which safetensors has only in its message.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        if number := re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error)):
            raise OSError(int(number[2]), number[1], str(path)) from None
        raise
    path.chmod(mode)  # safetensors creates files that only their owner can read


def save_calibration(buffers: Mapping[str, Any], run: str) -> None:
    """Write the buffers that were fitted after training, numbers or arrays by name, to the folder of a run."""
    from safetensors.torch import save

    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in buffers.items()}
    with fsspec.open(f"{run}/{_CALIBRATION_FILE}", "wb") as file:
        file.write(save(tensors))


def read_calibration(run: str) -> dict[str, torch.Tensor]:
    """Return the buffers that `save_calibration` wrote."""
    from safetensors.torch import load

    with fsspec.open(f"{run}/{_CALIBRATION_FILE}", "rb") as file:
        return load(file.read())


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint to evaluate and to export."""
    return load_safetensors(folder / MODEL_FILE)


def read_raw_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors from which training resumes."""
    raw = folder / _RAW_WEIGHTS_FILE
    return load_safetensors(raw if raw.exists() else folder / MODEL_FILE)


def read_train_state(folder: Path) -> TrainState:
    """Return the position of a checkpoint. Raises DataError where its file is missing or invalid."""
    try:
        return TrainState(**json.loads((folder / _TRAIN_STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: incomplete checkpoint: {error}") from None


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], TrainState]:
    """Return the tensors of the model and of the optimizer, and the position. Raises DataError if incomplete."""
    return read_model(folder), load_safetensors(folder / _OPTIMIZER_FILE), read_train_state(folder)

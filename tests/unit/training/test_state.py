"""The files of a checkpoint, and the state of the fp16 loss scaler."""

import errno
import json
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.errors import DataError
from rayfuse.training.state import (
    TrainState,
    copy_to_cpu,
    read_checkpoint,
    read_loss_scale,
    read_model,
    read_train_state,
    restore_loss_scale,
    write_checkpoint,
    write_tensors,
)

POSITION = TrainState(3, 120, [{"loss": 0.5}, {"loss": float("nan")}, {"loss": 0.25}], True)


def test_later_copies_reuse_the_memory_of_earlier_ones() -> None:
    buffers: dict[str, torch.Tensor] = {}
    first = copy_to_cpu([("a", torch.ones(3))], buffers)
    second = copy_to_cpu([("a", torch.full((3,), 2.0))], buffers)
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    assert copy_to_cpu([("a", torch.ones(3))])["a"].data_ptr() != first["a"].data_ptr()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tensors = {
        "a.weight": torch.arange(6.0).reshape(2, 3).T,
        "a.bias": torch.tensor([1], dtype=torch.bfloat16),
    }
    moments = {f"{moment}/{name}": torch.rand(2) for name in tensors for moment in ("exp_avg", "exp_avg_sq")}
    write_checkpoint(folder, tiny_jobs.tiny_job(tmp_path / "data"), tensors, moments, POSITION)
    return folder


def test_a_round_trip(checkpoint: Path) -> None:
    model, moments, position = read_checkpoint(checkpoint)
    assert model["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert model["a.bias"].dtype == torch.bfloat16
    assert sorted(moments) == [
        "exp_avg/a.bias", "exp_avg/a.weight", "exp_avg_sq/a.bias", "exp_avg_sq/a.weight",
    ]  # fmt: skip
    assert (position.epoch, position.step, position.stopped_early) == (3, 120, True)
    assert position.history[2] == {"loss": 0.25}
    assert position.history[1]["loss"] != position.history[1]["loss"]
    assert read_train_state(checkpoint).step == 120
    assert json.loads((checkpoint / "job.json").read_text())["name"] == "tiny"
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "train_state.json").unlink(), "checkpoint: incomplete checkpoint: "),
        (lambda f: (f / "train_state.json").write_text('{"epoch": '), "incomplete checkpoint: "),
        (lambda f: (f / "train_state.json").write_text('{"epochs": 1}'), "incomplete checkpoint: "),
        (lambda f: (f / "train_state.json").write_text("[]"), "incomplete checkpoint: "),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors: missing or incomplete safetensors file: .*again",
        ),
        (
            lambda f: truncate(f / "model.safetensors"),
            "model.safetensors: missing or incomplete safetensors file",
        ),
        (
            lambda f: truncate(f / "optimizer.safetensors"),
            "optimizer.safetensors: missing or incomplete safetensors file",
        ),
        (lambda f: (f / "optimizer.safetensors").write_bytes(b""), "missing or incomplete safetensors file"),
    ],
)
def test_incomplete_checkpoints(damage: Callable[[Path], Any], problem: str, checkpoint: Path) -> None:
    damage(checkpoint)
    with pytest.raises(DataError, match=problem):
        read_checkpoint(checkpoint)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def test_an_absent_folder(tmp_path: Path) -> None:
    for read in (read_checkpoint, read_model, read_train_state):
        with pytest.raises(DataError, match="incomplete checkpoint|missing or incomplete"):
            read(tmp_path / "absent")


def test_a_write_error_has_its_errno(tmp_path: Path) -> None:
    """Safetensors raises its own error, with the number in its message only."""
    tensors = {"weight": torch.ones(1 << 20)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_tensors(tmp_path / "model.safetensors", tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


def test_files_have_the_permissions_of_the_process(checkpoint: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in checkpoint.iterdir()}
    assert len(set(modes.values())) == 1, modes


class Scaled:
    """A stand-in for DeepSpeed's engine with fp16: under stage 0 the engine has the scaler, otherwise its optimizer."""

    def __init__(self, stage: int) -> None:
        self.weight = torch.ones(1, requires_grad=True)
        self.sgd = torch.optim.SGD([self.weight], lr=0.0)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        self.torch_autocast_z0_gradscaler = self.scaler if stage == 0 else None
        self.optimizer = SimpleNamespace(torch_autocast_gradscaler=self.scaler) if stage else self.sgd

    def step(self, loss: float = 1.0) -> float:
        self.scaler.scale(self.weight.sum() * loss).backward()
        self.scaler.step(self.sgd)
        self.scaler.update()
        self.weight.grad = None
        return self.scaler.get_scale()


@pytest.mark.parametrize("stage", [0, 2])
def test_the_loss_scale_is_restored(stage: int, checkpoint: Path) -> None:
    uninterrupted, first, second = (Scaled(stage) for _ in range(3))
    losses = [1.0, 1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    scales = [uninterrupted.step(loss) for loss in losses]
    assert scales[-3:] == [64.0, 64.0, 128.0]  # a new scaler would not have grown yet
    found = [first.step(loss) for loss in losses[:6]]
    state = TrainState(step=6, loss_scale=read_loss_scale(first))
    write_checkpoint(checkpoint, tiny_jobs.tiny_job(checkpoint / "data"), {}, {}, state)
    restore_loss_scale(second, read_train_state(checkpoint).loss_scale)
    assert [*found, *(second.step(loss) for loss in losses[6:])] == scales


def test_other_precisions_have_no_loss_scale() -> None:
    engine = SimpleNamespace(torch_autocast_z0_gradscaler=None, optimizer=torch.optim.SGD([torch.ones(1)]))
    assert read_loss_scale(engine) == {}
    restore_loss_scale(engine, {"scale": 2.0})
    restore_loss_scale(Scaled(0), {})

"""Checkpoints on disk, and the state of an optimizer without ZeRO."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.errors import DataError
from rayfuse.spec.checkpointing import Keep
from rayfuse.train import loop
from rayfuse.train.checkpoints import Saver, find
from rayfuse.train.state import (
    Position,
    read_checkpoint,
    read_loss_scale,
    read_model,
    read_position,
    restore_loss_scale,
    write_checkpoint,
)

POSITION = Position(3, 120, [{"loss": 0.5}, {"loss": float("nan")}, {"loss": 0.25}], True)


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
    assert read_position(checkpoint).step == 120
    assert json.loads((checkpoint / "job.json").read_text())["name"] == "tiny"
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "position.json").unlink(), "checkpoint: not a whole checkpoint: "),
        (lambda f: (f / "position.json").write_text('{"epoch": '), "not a whole checkpoint: "),
        (lambda f: (f / "position.json").write_text('{"epochs": 1}'), "not a whole checkpoint: "),
        (lambda f: (f / "position.json").write_text("[]"), "not a whole checkpoint: "),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors: not a whole file of tensors: .*again",
        ),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors: not a whole file of tensors"),
        (lambda f: cut(f / "optimizer.safetensors"), "optimizer.safetensors: not a whole file of tensors"),
        (lambda f: (f / "optimizer.safetensors").write_bytes(b""), "not a whole file of tensors"),
    ],
)
def test_damaged_checkpoints(damage: Callable[[Path], Any], problem: str, checkpoint: Path) -> None:
    damage(checkpoint)
    with pytest.raises(DataError, match=problem):
        read_checkpoint(checkpoint)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def test_no_folder_at_all(tmp_path: Path) -> None:
    for read in (read_checkpoint, read_model, read_position):
        with pytest.raises(DataError, match="not a whole"):
            read(tmp_path / "absent")


class Scaled:
    """What DeepSpeed's engine has of fp16: under stage 0 in itself, else in its optimizer."""

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
def test_the_scale_of_losses_goes_on(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second = (Scaled(stage) for _ in range(3))
    losses = [1.0, 1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    wanted = [whole.step(loss) for loss in losses]
    assert wanted[-3:] == [64.0, 64.0, 128.0]  # a scale that began anew would not have grown yet
    found = [first.step(loss) for loss in losses[:6]]
    for name in ("gather_model", "gather_optimizer"):
        monkeypatch.setattr(loop, name, lambda engine: ())
    saver = Saver(str(tmp_path), Keep(last=1, best=1), lambda metrics: 0.0)
    parts: dict[str, Any] = {
        "average": None,
        "copies": {},
        "agenda": SimpleNamespace(saved=lambda: None, warned=False),
    }
    job, guard = tiny_jobs.tiny_job(tmp_path / "data"), SimpleNamespace(state=dict)
    writer: Any = SimpleNamespace(
        engine=first, saver=saver, job=job, guard=guard, position=Position(step=6), **parts
    )
    loop.Worker.save(writer)
    saver.wait()
    reader: Any = SimpleNamespace(
        engine=second, average=None, _load=lambda weights: None, _empty_step=lambda: None
    )
    loop.Worker.restore(reader, Path(find(str(tmp_path))[0].url))
    assert [*found, *(second.step(loss) for loss in losses[6:])] == wanted


def test_other_precisions_have_no_scale() -> None:
    engine = SimpleNamespace(torch_autocast_z0_gradscaler=None, optimizer=torch.optim.SGD([torch.ones(1)]))
    assert read_loss_scale(engine) == {}
    restore_loss_scale(engine, {"scale": 2.0})
    restore_loss_scale(Scaled(0), {})

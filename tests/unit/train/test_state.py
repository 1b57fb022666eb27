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
from rayfuse.train.state import (
    Position,
    gather_model,
    gather_optimizer,
    read_checkpoint,
    read_model,
    read_position,
    restore_optimizer,
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


def engine_of(model: torch.nn.Module) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return SimpleNamespace(module=model, optimizer=optimizer, zero_optimization_stage=lambda: 0, device="cpu")


class Partly(torch.nn.Module):
    """One layer of two is used; the other gets no gradient, as some weights of pretrained models."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def take_step(engine: Any) -> None:
    engine.optimizer.zero_grad()
    engine.module(torch.ones(1, 2)).sum().backward()
    engine.optimizer.step()


def test_an_optimizer_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    torch.manual_seed(0)
    first = engine_of(Partly())
    for _ in range(3):
        take_step(first)
    weights, moments = gather_model(first), gather_optimizer(first)
    assert weights.keys() == dict(first.module.named_parameters()).keys()
    assert moments["exp_avg/used.weight"].any()
    assert not moments["exp_avg/unused.weight"].any()

    second = engine_of(Partly())
    second.module.load_state_dict(weights)
    restore_optimizer(second, moments, 3, lambda: take_step(second))
    second.module.load_state_dict(weights)  # as the step that makes the state must change nothing
    for engine in (first, second):
        take_step(engine)
    for name, tensor in gather_model(first).items():
        torch.testing.assert_close(tensor, gather_model(second)[name], msg=name)
    for name, tensor in gather_optimizer(first).items():
        torch.testing.assert_close(tensor, gather_optimizer(second)[name], msg=name)

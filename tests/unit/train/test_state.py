"""Checkpoints on disk, and the state of an optimizer without ZeRO."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.errors import DataError
from rayfuse.train.state import (
    Position,
    read_checkpoint,
    read_model,
    read_position,
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

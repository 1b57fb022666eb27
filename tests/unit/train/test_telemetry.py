"""What a worker reports."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from rayfuse.train import telemetry as module
from rayfuse.train.board import Board
from rayfuse.train.meter import Measured, Place
from rayfuse.train.telemetry import Telemetry

CPU = torch.device("cpu")
STEPS, EPOCHS = 10, 2


class Remote:
    """A board whose methods are called as an actor's."""

    def __init__(self) -> None:
        self.board = Board()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.board, name)
        return type("Method", (), {"remote": staticmethod(method)})


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def telemetry(remote: Remote) -> Any:
    telemetry = Telemetry(remote, CPU)
    yield telemetry
    telemetry.close()


def measured(telemetry: Telemetry, number: int, seconds: float, **changes: Any) -> Measured:
    """Step `number` of an epoch, done so many seconds after the clock began."""
    usual = Measured(
        place=Place(0, number - 1, number, 0.01),
        time=telemetry._since + seconds,
        loss=float(number),
        parts={"answer": float(number)},
        losses=(16.0 * number,),
        gradient_norm=2.0 * number,
        rows=16,
        tokens={},
        waited=0.25,
    )
    return replace(usual, **changes)


def test_a_board_hands_out_what_is_new() -> None:
    board = Board()
    board.push([{"step": 1}, {"step": 2}])
    board.show({"epoch": 1})
    assert board.pull(0) == ([{"step": 1}, {"step": 2}], {"epoch": 1})
    board.push([{"step": 3}])
    assert board.pull(2) == ([{"step": 3}], {"epoch": 1})
    assert board.pull(3) == ([], {"epoch": 1})


def test_steps_are_reported_about_once_a_second_and_at_the_end(telemetry: Telemetry, remote: Remote) -> None:
    for number in (1, 2, 3):
        telemetry.step(measured(telemetry, number, number * 0.3), STEPS, EPOCHS)
    assert not remote.board.records
    telemetry.step(measured(telemetry, 4, 2.0, rows=8), STEPS, EPOCHS)
    [record] = remote.board.records
    assert record["step"] == 4
    memory = record["metrics"].pop("train/memory_gigabytes")
    assert 0.01 < memory < 100
    assert record["metrics"] == pytest.approx(
        {
            "train/loss": (16 + 32 + 48 + 32) / 56,
            "train/gradient_norm": 5.0,
            "train/samples_per_second": 28.0,
            "train/data_wait": 0.5,
            "train/step_seconds": 0.5,
            "train/lr": 0.01,
            "train/seconds_left": (6 + 10) * 0.5,
        }
    )
    progress = remote.board.progress
    assert (progress["epoch"], progress["epochs"], progress["step"], progress["steps"]) == (1, 2, 4, 10)
    assert progress["metrics"] is record["metrics"]
    telemetry.step(measured(telemetry, 10, 0.1), STEPS, EPOCHS)  # the end of the epoch, whenever it comes
    assert remote.board.records[1]["metrics"]["train/samples_per_second"] == pytest.approx(160.0)


def test_tokens_are_told_of_each_input_where_several_have_some(telemetry: Telemetry, remote: Remote) -> None:
    both = {"text": (30, 40), "readings": (50, 50)}
    telemetry.step(measured(telemetry, 1, 0.5, tokens=both), STEPS, EPOCHS)
    telemetry.step(measured(telemetry, 2, 2.0, tokens={"text": (10, 10)}), STEPS, EPOCHS)
    metrics = remote.board.records[0]["metrics"]
    found = {name: value for name, value in metrics.items() if "tokens" in name or "padding" in name}
    assert found == pytest.approx(
        {
            "train/tokens_per_second": 45.0,
            "train/tokens_per_second/text": 20.0,
            "train/tokens_per_second/readings": 25.0,
            "train/padding/text": 0.2,
            "train/padding/readings": 0.0,
        }
    )
    telemetry.step(measured(telemetry, 10, 2.0, tokens={"text": (10, 10)}), STEPS, EPOCHS)
    assert "train/tokens_per_second/text" not in remote.board.records[1]["metrics"]


def test_losses_that_have_parts_are_told(telemetry: Telemetry, remote: Remote) -> None:
    parts = {"answer": 1.0, "align/contrastive": 3.0}
    telemetry.step(measured(telemetry, 1, 2.0, parts=parts, gradient_norm=None), STEPS, EPOCHS)
    metrics = remote.board.records[0]["metrics"]
    assert metrics["train/loss/align/contrastive"] == 3.0
    assert "train/gradient_norm" not in metrics


def test_what_fp16_skips_does_not_spoil_the_journal(telemetry: Telemetry, remote: Remote) -> None:
    telemetry.step(measured(telemetry, 1, 0.5, gradient_norm=float("inf")), STEPS, EPOCHS)
    telemetry.step(measured(telemetry, 2, 2.0, gradient_norm=3.0), STEPS, EPOCHS)
    assert remote.board.records[0]["metrics"]["train/gradient_norm"] == 3.0
    json.dumps(remote.board.records, allow_nan=False)


def test_a_gpu_of_known_peak_has_a_utilization(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_peak", lambda device: 1e6)
    telemetry = Telemetry(remote, CPU, world=2)
    weights = torch.ones(10, 10)
    batch = type("Batch", (), {"whole": torch.ones(5, dtype=torch.bool)})
    with telemetry.counting([batch]):
        torch.ones(5, 10) @ weights  # 2 × 5 × 10 × 10 FLOPs for 5 rows
    telemetry.step(measured(telemetry, 1, 2.0, rows=1000), STEPS, EPOCHS)
    assert remote.board.records[0]["metrics"]["train/mfu"] == pytest.approx(200 * 500 / 2e6)
    telemetry.close()


def test_a_worker_without_a_board_says_nothing() -> None:
    telemetry = Telemetry(None, CPU)
    with telemetry.counting([]):
        telemetry.step(measured(telemetry, 1, 2.0), STEPS, EPOCHS)
    telemetry.say(1, "text")
    assert telemetry._steps == []


def test_the_clock_stands_still_while_validating(telemetry: Telemetry, remote: Remote) -> None:
    telemetry._since -= 1000
    telemetry.resume_clock()
    telemetry.step(measured(telemetry, 10, 1.0), STEPS, EPOCHS)
    assert remote.board.records[0]["metrics"]["train/samples_per_second"] == pytest.approx(16)


def test_the_machine_is_watched(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SYSTEM_SECONDS", 0.01)
    telemetry = Telemetry(remote, CPU)
    deadline = time.monotonic() + 5
    while len(remote.board.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    telemetry.close()
    first, second = remote.board.records[:2]
    assert (first["step"], second["step"]) == (0, 1)
    assert 0 < first["metrics"]["system/system_memory_usage_percentage"] <= 100
    assert not [name for name in first["metrics"] if "gpu" in name]

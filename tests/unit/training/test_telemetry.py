"""Records and progress that rank 0 sends to the driver."""

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from rayfuse.training import telemetry as module
from rayfuse.training.step_metrics import StepMetrics, StepPosition
from rayfuse.training.telemetry import Telemetry

CPU = torch.device("cpu")
STEPS, EPOCHS = 10, 2


class Sender:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.progress: dict[str, Any] = {}

    def send(self, records: list[dict[str, Any]]) -> None:
        self.records += records

    def set_progress(self, progress: dict[str, Any]) -> None:
        self.progress = progress


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.fixture
def telemetry(sender: Sender, clock: "Clock") -> Any:
    telemetry = Telemetry(sender, CPU, clock=clock)
    yield telemetry
    telemetry.close()


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measured(number: int, seconds: float, **changes: Any) -> StepMetrics:
    """Return step `number` of an epoch, which ended at this time of the clock."""
    usual = StepMetrics(
        position=StepPosition(0, number - 1, number, 0.01),
        time=seconds,
        loss=float(number),
        loss_terms={"answer": float(number)},
        rank_losses=(16.0 * number,),
        gradient_norm=2.0 * number,
        rows=16,
        tokens={},
        data_wait_seconds=0.25,
    )
    return replace(usual, **changes)


def test_steps_are_sent_about_once_a_second_and_at_the_end(telemetry: Telemetry, sender: Sender) -> None:
    for number in (1, 2, 3):
        telemetry.log_step(measured(number, number * 0.3), STEPS, EPOCHS)
    assert not sender.records
    telemetry.log_step(measured(4, 2.0, rows=8), STEPS, EPOCHS)
    [record] = sender.records
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
    progress = sender.progress
    assert (progress["epoch"], progress["epochs"], progress["step"], progress["steps"]) == (1, 2, 4, 10)
    assert progress["metrics"] is record["metrics"]
    telemetry.log_step(measured(10, 2.1), STEPS, EPOCHS)  # the end of the epoch
    assert sender.records[1]["metrics"]["train/samples_per_second"] == pytest.approx(160.0)


def test_several_inputs_have_token_rates_of_their_own(telemetry: Telemetry, sender: Sender) -> None:
    both = {"text": (30, 40), "vibration": (50, 50)}
    telemetry.log_step(measured(1, 0.5, tokens=both), STEPS, EPOCHS)
    telemetry.log_step(measured(2, 2.0, tokens={"text": (10, 10)}), STEPS, EPOCHS)
    metrics = sender.records[0]["metrics"]
    found = {name: value for name, value in metrics.items() if "tokens" in name or "padding" in name}
    assert found == pytest.approx(
        {
            "train/tokens_per_second": 45.0,
            "train/tokens_per_second/text": 20.0,
            "train/tokens_per_second/vibration": 25.0,
            "train/padding/text": 0.2,
            "train/padding/vibration": 0.0,
        }
    )
    telemetry.log_step(measured(10, 4.0, tokens={"text": (10, 10)}), STEPS, EPOCHS)
    assert "train/tokens_per_second/text" not in sender.records[1]["metrics"]


def test_loss_terms_are_sent(telemetry: Telemetry, sender: Sender) -> None:
    parts = {"answer": 1.0, "align/contrastive": 3.0}
    telemetry.log_step(measured(1, 2.0, loss_terms=parts, gradient_norm=None), STEPS, EPOCHS)
    metrics = sender.records[0]["metrics"]
    assert metrics["train/loss/align/contrastive"] == 3.0
    assert "train/gradient_norm" not in metrics


def test_an_infinite_gradient_norm_is_left_out(telemetry: Telemetry, sender: Sender) -> None:
    telemetry.log_step(measured(1, 0.5, gradient_norm=float("inf")), STEPS, EPOCHS)
    telemetry.log_step(measured(2, 2.0, gradient_norm=3.0), STEPS, EPOCHS)
    assert sender.records[0]["metrics"]["train/gradient_norm"] == 3.0
    json.dumps(sender.records, allow_nan=False)


def test_a_gpu_of_known_peak_has_a_utilization(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_peak_flops", lambda device: 1e6)
    telemetry = Telemetry(sender, CPU, world_size=2, clock=Clock())
    weights = torch.ones(10, 10)
    batch = type("Batch", (), {"is_full": torch.ones(5, dtype=torch.bool)})
    with telemetry.count_flops([batch]):
        torch.ones(5, 10) @ weights  # 2 × 5 × 10 × 10 FLOPs for 5 rows
    telemetry.log_step(measured(1, 2.0, rows=1000), STEPS, EPOCHS)
    assert sender.records[-1]["metrics"]["train/mfu"] == pytest.approx(200 * 500 / 2e6)
    telemetry.close()


def test_no_system_metrics_are_measured_without_a_sender() -> None:
    before = {thread.name for thread in threading.enumerate()}
    Telemetry(None, CPU).log_step(measured(1, 2.0), STEPS, EPOCHS)
    assert {thread.name for thread in threading.enumerate()} == before


def test_time_without_training_is_left_out_of_the_rates(
    telemetry: Telemetry, sender: Sender, clock: Clock
) -> None:
    clock.now = 1000.0
    telemetry.reset_timer()
    telemetry.log_step(measured(10, 1001.0), STEPS, EPOCHS)
    assert sender.records[0]["metrics"]["train/samples_per_second"] == pytest.approx(16)


def test_system_metrics_are_sent(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SYSTEM_SECONDS", 0.01)
    telemetry = Telemetry(sender, CPU)
    deadline = time.monotonic() + 5
    while len(sender.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    telemetry.close()
    first, second = sender.records[:2]
    assert (first["step"], second["step"]) == (0, 1)
    assert 0 < first["metrics"]["system/system_memory_usage_percentage"] <= 100
    assert not [name for name in first["metrics"] if "gpu" in name]

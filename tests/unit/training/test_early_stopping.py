"""When to stop early."""

import math
from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.training.distributed import DistributedContext
from rayfuse.training.early_stopping import EpochSelection, TimeBudget, best_epoch, should_stop

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.3, 0.2], "max", 1),
        ([0.1, 0.3, 0.2], "min", 0),
        ([0.3, 0.5, 0.5, 0.4], "max", 1),
        ([2.0, 1.0, 1.0], "min", 1),
        ([NAN, 0.1, NAN], "max", 1),
        ([NAN, 0.1, NAN], "min", 1),
        ([NAN, NAN], "max", 0),
        ([-math.inf, -5.0], "max", 1),
        ([7.0], "min", 0),
    ],
)
def test_the_best_epoch(values: list[float], mode: str, best: int) -> None:
    assert best_epoch(values, mode) == best  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "patience", "stop"),
    [
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.5, 0.5], 2, True),
        ([0.1, 0.2, 0.3, 0.4], 1, False),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.5, NAN, NAN], 2, True),
        ([NAN, 0.1], 1, False),
        ([NAN, NAN, NAN], 2, True),
    ],
)
def test_stopping(values: list[float], patience: int, stop: bool) -> None:
    assert should_stop(values, "max", patience) is stop
    assert should_stop([-value for value in values], "min", patience) is stop


def test_the_last_epoch_is_named_if_it_is_used(tmp_path: Path) -> None:
    history = [{"loss": 0.4, "answer/accuracy": 0.7}, {"loss": 0.5, "answer/accuracy": 0.6}]
    options = {"epochs": 2, "early_stopping": None, "load_best_model_at_end": False}
    job = tiny_jobs.tiny_job(tmp_path, **{f"train.{name}": value for name, value in options.items()})
    selection = EpochSelection.of(job, history)
    assert selection.best_epoch == 2
    assert str(selection) == (
        "last of 2 epochs used, with validation loss 0.5000; training ended: all epochs are done"
    )


def test_the_selection_names_the_metric_the_epoch_and_the_reason(tmp_path: Path) -> None:
    history = [{"loss": 0.5, "answer/accuracy": 0.7}, {"loss": 0.4, "answer/accuracy": 0.6}]
    done = tiny_jobs.tiny_job(tmp_path, **{"train.epochs": 2, "train.early_stopping": None})
    assert str(EpochSelection.of(done, history)) == (
        "best epoch: 2 of 2, by validation loss 0.4000; training ended: all epochs are done"
    )
    stopping = {"metric": "answer/accuracy", "patience": 1}
    stopped = tiny_jobs.tiny_job(tmp_path, **{"train.epochs": 9, "train.early_stopping": stopping})
    assert str(EpochSelection.of(stopped, history)) == (
        "best epoch: 1 of 2, by validation answer/accuracy 0.7000; "
        "training ended: early stopping: no better answer/accuracy in 1 epoch"
    )


def test_the_time_budget_is_a_reason(tmp_path: Path) -> None:
    options = {"train.epochs": 9, "train.early_stopping": None, "train.time_budget": "2m"}
    job = tiny_jobs.tiny_job(tmp_path, **options)
    assert EpochSelection.of(job, [{"loss": 0.5}]).stop_reason == (
        "time budget: another epoch would exceed train.time_budget, 120 s"
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_epochs_fit_until_the_next_would_end_too_late() -> None:
    clock = Clock()
    budget = TimeBudget(30, DistributedContext(), clock)
    budget.start(0)
    clock.now += 10
    assert budget.allows_epoch(1)
    clock.now += 10
    assert budget.allows_epoch(2)
    clock.now += 10
    assert not budget.allows_epoch(3)
    assert budget.spent == 30


def test_time_before_a_resume_counts() -> None:
    clock = Clock()
    budget = TimeBudget(30, DistributedContext(), clock)
    clock.now += 1000  # of loading data
    budget.start(20)
    clock.now += 5
    assert budget.spent == 25
    assert budget.allows_epoch(5)
    assert not budget.allows_epoch(4)


def test_without_a_budget_every_epoch_fits() -> None:
    clock = Clock()
    budget = TimeBudget(None, DistributedContext(), clock)
    clock.now += 1e9
    assert budget.allows_epoch(1)

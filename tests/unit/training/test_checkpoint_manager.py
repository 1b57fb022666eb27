"""Saving and restoring the state of a run, with a torch model and optimizer instead of DeepSpeed's engine."""

import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.errors import DataError
from rayfuse.training import checkpoint_manager
from rayfuse.training.checkpoint_manager import CheckpointManager, read_weights
from rayfuse.training.checkpoints import checkpoint_url, latest_valid_checkpoint
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.ema import Ema
from rayfuse.training.state import TrainState, write_checkpoint


class Engine:
    """The part of DeepSpeedEngine that checkpoints use, under ZeRO stage 0 with fp16."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)
        self.torch_autocast_z0_gradscaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)

    def zero_optimization_stage(self) -> int:
        return 0

    def step(self, loss_factor: float = 1.0) -> float:
        """Take a step and return the loss scale after it."""
        scaler = self.torch_autocast_z0_gradscaler
        scaler.scale(self.module(torch.ones(1, 3)).square().sum() * loss_factor).backward()
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad()
        return float(scaler.get_scale())

    def run_noop_step(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()


def manager(engine: Any, job: Any, run: Path | None, ema: Ema | None = None) -> CheckpointManager:
    if run:
        run.mkdir(exist_ok=True)
    url = str(run) if run else None
    return CheckpointManager(job, engine, DistributedContext(), engine.run_noop_step, ema, url)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return tiny_jobs.tiny_job(tmp_path / "data")


def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(job: Any, tmp_path: Path) -> None:
    factors = [1.0, 1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    uninterrupted, first, second = Engine(), Engine(), Engine(seed=1)
    scales = [uninterrupted.step(factor) for factor in factors]
    assert scales[-3:] == [64.0, 64.0, 128.0]  # a new scaler would not have grown yet
    found = [first.step(factor) for factor in factors[:6]]
    with manager(first, job, tmp_path / "run") as checkpoints:
        url = checkpoints.save(TrainState(step=6, history=[{"loss": 1.0}]))
    assert url == checkpoint_url(str(tmp_path / "run"), 6)
    state = manager(second, job, tmp_path / "run").resume(print)
    assert state is not None
    assert (state.step, state.history) == (6, [{"loss": 1.0}])
    assert [*found, *(second.step(factor) for factor in factors[6:])] == scales
    torch.testing.assert_close(second.module.state_dict(), uninterrupted.module.state_dict(), rtol=0, atol=0)


def test_the_average_is_saved_and_restored_with_the_trained_weights(job: Any, tmp_path: Path) -> None:
    first, second = Engine(), Engine(seed=1)
    average = Ema(first.module, 0.9)
    first.step()
    average.update(1)
    with manager(first, job, tmp_path / "run", average) as checkpoints:
        checkpoints.save(TrainState(step=1))
    restored = Ema(second.module, 0.9)
    manager(second, job, tmp_path / "run", restored).resume(print)
    torch.testing.assert_close(restored.tensors, average.tensors, rtol=0, atol=0)
    torch.testing.assert_close(second.module.state_dict(), first.module.state_dict(), rtol=0, atol=0)
    newest = latest_valid_checkpoint(str(tmp_path / "run"), print)
    assert newest is not None
    torch.testing.assert_close(read_weights(newest), average.tensors, rtol=0, atol=0)


def test_a_save_waits_until_the_one_before_it_is_written(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def write(*arguments: Any) -> None:
        assert may_write.wait(30)
        write_checkpoint(*arguments)

    monkeypatch.setattr(checkpoint_manager, "write_checkpoint", write)
    engine = Engine()
    with manager(engine, job, tmp_path / "run") as checkpoints:
        torch.nn.init.zeros_(engine.module.weight)
        checkpoints.save(TrainState(step=1), {"validation/loss": 1.0, job.selection_metric: 0.1})
        torch.nn.init.ones_(engine.module.weight)
        second = threading.Thread(
            target=checkpoints.save, args=(TrainState(step=2), {job.selection_metric: 0.2})
        )
        second.start()
        may_write.set()
        second.join()
        checkpoints.wait()
        weights = {c.step: read_weights(c)["weight"] for c in checkpoints.best()}
    assert {step: float(weight.mean()) for step, weight in weights.items()} == {1: 0.0, 2: 1.0}


def test_best_checkpoints_come_first_and_nan_comes_last(job: Any, tmp_path: Path) -> None:
    metric = job.selection_metric
    best, other = (0.9, 0.1) if job.metric_modes()[metric] == "max" else (0.1, 0.9)
    job = job.model_copy(
        update={"train": job.train.model_copy(update={"model_soup": 3})}
    )  # keeps the best three
    with manager(Engine(), job, tmp_path / "run") as checkpoints:
        for step, value in enumerate([float("nan"), best, other], 1):
            checkpoints.save(TrainState(step=step), {metric: value})
        assert [checkpoint.step for checkpoint in checkpoints.best()] == [2, 3, 1]


def test_the_last_checkpoint_comes_first_if_the_best_is_not_used(job: Any, tmp_path: Path) -> None:
    job = job.override(**{"train.early_stopping": None, "train.load_best_model_at_end": False})
    with manager(Engine(), job, tmp_path / "run") as checkpoints:
        for step, loss in enumerate([0.1, 0.2, 0.9], 1):
            checkpoints.save(TrainState(step=step), {"loss": loss})
        assert checkpoints.best()[0].step == 3


def test_rewinding_restores_the_state_before_a_step(job: Any, tmp_path: Path) -> None:
    engine = Engine()
    job = job.model_copy(update={"train": job.train.model_copy(update={"model_soup": 3})})
    with manager(engine, job, tmp_path / "run") as checkpoints:
        for step in (1, 2):
            engine.module.bias.data.fill_(float(step))
            checkpoints.save(TrainState(step=step), {job.selection_metric: 0.5})
        state = checkpoints.rewind_before(2)
        assert state is not None
        assert state.step == 1
        assert engine.module.bias.tolist() == [1.0, 1.0]
        assert checkpoints.rewind_before(1) is None
    assert latest_valid_checkpoint(str(tmp_path / "run"), print) is None


def test_without_a_run_nothing_is_written(job: Any) -> None:
    checkpoints = manager(Engine(), job, None)
    assert checkpoints.save(TrainState(step=1)) is None
    assert checkpoints.resume(print) is None
    assert checkpoints.best() == []


def test_weights_of_another_model_are_rejected(job: Any, tmp_path: Path) -> None:
    with manager(Engine(), job, tmp_path / "run") as checkpoints:
        checkpoints.save(TrainState(step=1))
    other = Engine()
    other.module = torch.nn.Linear(3, 2, bias=False)
    other.optimizer = torch.optim.SGD(other.module.parameters(), lr=0.1)
    with pytest.raises(DataError, match="1 tensors are unexpected, such as bias"):
        manager(other, job, tmp_path / "run").resume(print)

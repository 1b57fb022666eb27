"""A run that is interrupted after any step and resumed takes the same steps as an uninterrupted run."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_jobs
import torch

from rayfuse.spec.checkpointing import CheckpointingConfig
from rayfuse.training.checkpoint_trigger import CheckpointTrigger
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.telemetry import Telemetry
from rayfuse.training.trainer import NullEpochReporter

EPOCHS = 3
AIDS = {
    "train.ema": {"decay": 0.9},
    "train.mixup": {"alpha": 0.3},
    "train.modality_dropout": 0.3,
    "inputs.image.augment": [{"type": "affine"}, {"type": "gaussian_noise"}],
    "train.param_groups": [{"pattern": "encoders.text.*", "start": 7}, {"pattern": "tasks.*", "end": "60%"}],
}
"""All random parts of training except dropout, and parameters that are trained in a part of the run."""


class Interrupted(Exception):
    """Raised to end a training early."""


class Interruption(NullEpochReporter, CheckpointTrigger):
    """Save after one step only and interrupt training when it is saved; also a reporter, for steps that end an epoch."""

    def __init__(self, options: CheckpointingConfig, context: DistributedContext, stop: int | None) -> None:
        super().__init__(options, context)
        self.stop = stop

    def should_save(self, step: int) -> bool:
        if self.stop is None:
            return super().should_save(step)
        if step > self.stop:
            raise Interrupted
        return step == self.stop

    def report(self, metrics: Any, checkpoint_url: str | None, epoch: int, step: int) -> None:
        if self.stop is not None and step >= self.stop:
            raise Interrupted


class Losses(Telemetry):
    """Record the loss of each step and validation; set all weights to NaN before step `poisoned`, once."""

    def __init__(self, poisoned: int | None = None) -> None:
        super().__init__(None, torch.device("cpu"))
        self.poisoned = poisoned
        self.trainer: Any = None
        self.losses: dict[str, float] = {}
        self.messages: list[str] = []

    def log_step(self, step_metrics: Any, steps: int, epochs: int) -> None:
        self.losses[str(step_metrics.position.step)] = step_metrics.loss

    def count_flops(self, batches: Any) -> Any:
        if self.trainer.state.step + 1 == self.poisoned:
            self.poisoned = None
            for parameter in self.trainer.engine.module.parameters():
                parameter.data.fill_(float("nan"))
        return super().count_flops(batches)

    def log_text(self, step: int, text: str) -> None:
        self.messages.append(text)

    def log_metrics(self, step: int, metrics: Any, **more: int) -> None:
        if "validation/loss" in metrics and "replayed" not in more:
            self.losses[f"validation {step}"] = metrics["validation/loss"]


def train(
    folder: Path,
    job: Any,
    world: int,
    stop: int | None = None,
    poisoned: int | None = None,
    skipped: int | None = None,
) -> dict[str, float]:
    """Train in the run folder FOLDER from its latest checkpoint to the end, or until step `stop` is saved.

    All weights are NaN before step `poisoned`; the batch of step `skipped` is skipped. Returns the losses by step, and
    those of each validation.
    """
    ranks.spawn(_rank, world, job.model_dump_json(), stop, poisoned, skipped, folder)
    return json.loads((folder / "losses.json").read_text())


def _rank(
    rank: int,
    world: int,
    job_json: str,
    stop: int | None,
    poisoned: int | None,
    skipped: int | None,
    folder: Path,
) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
    context, telemetry = DistributedContext(rank, world), Losses(poisoned)
    interruption = Interruption(job.train.checkpoint, context, stop)
    trainer = telemetry.trainer = build_trainer(
        job,
        dataset.splits,
        load_deepspeed_config(job),
        context,
        run=str(folder),
        telemetry=telemetry,
        checkpoint_trigger=interruption,
        reporter=interruption,
    )
    if skipped is not None:
        guard = {**trainer.loss_guard.state_dict(), "skipped_ranges": [[skipped, skipped]]}
        trainer.loss_guard.load_state_dict(guard)
    trainer.resume(print)
    with contextlib.suppress(Interrupted):
        trainer.train()
    trainer.checkpoints.wait()
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(telemetry.losses))
        (folder / "messages.txt").write_text("\n".join(telemetry.messages))
    torch.distributed.barrier()


def make_job(folder: Path, **overrides):
    settings = {"train.epochs": EPOCHS, "train.batch_size": 4, "train.early_stopping": None, **overrides}
    if not (folder / "train.jsonl").exists():
        tiny_jobs.make_rows(folder, 32, "train")
        tiny_jobs.make_rows(folder, 8, "test")
        tiny_jobs.roughen(folder)
    return tiny_jobs.tiny_job(folder, **settings)


@pytest.mark.parametrize(
    ("world", "stage"),
    [(1, 0), (2, 2), pytest.param(2, 3, marks=pytest.mark.slow), pytest.param(1, 1, marks=pytest.mark.slow)],
)
def test_resume_after_any_step_is_exact(world: int, stage: int, tmp_path: Path) -> None:
    aids = {name: value for name, value in AIDS.items() if stage != 3 or name != "train.ema"}
    job = make_job(tmp_path, **aids, **{"train.deepspeed.stage": stage})
    whole = train(new(tmp_path / "whole"), job, world)
    steps = max(int(step) for step in whole if step.isdigit())
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    first = rng.randrange(1, steps - 1)
    second = rng.randrange(first + 1, steps)
    folder = new(tmp_path / "run")
    pieces = [train(folder, job, world, stop) for stop in (first, second)] + [train(folder, job, world)]
    together: dict[str, float] = {}
    for piece in pieces:
        assert not together.keys() & piece.keys(), (
            f"trained twice; interrupted at {first}, {second} ({seed=})"
        )
        together |= piece
    assert together == pytest.approx(whole, abs=1e-6), f"interrupted at {first}, {second} ({seed=})"


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_rollback_skips_the_batch_of_a_nan_loss(world: int, stage: int, tmp_path: Path) -> None:
    guard = {"action": "rollback", "skip_batches": 0}
    often = {"train.checkpoint": {"every_n_steps": 2, "keep": {"last": 2}}}
    job = make_job(tmp_path, **{"train.deepspeed.stage": stage, "train.loss_guard": guard}, **often)
    seed = random.randrange(1 << 30)
    step = random.Random(seed).randrange(4, 15)
    expected = train(new(tmp_path / "expected"), job, world, skipped=step)
    found = train(new(tmp_path / "found"), job, world, poisoned=step)
    assert str(step) not in found
    assert found == pytest.approx(expected, abs=1e-6), f"poisoned at {step} ({seed=})"
    messages = (tmp_path / "found" / "messages.txt").read_text()
    assert f"at step {step}, on the rows " in messages
    assert f"skipping the batches of steps {step} to {step}" in messages


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder

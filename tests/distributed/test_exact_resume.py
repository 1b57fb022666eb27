"""A run that is interrupted after any step and goes on takes the steps that it would have taken anyhow."""

import contextlib
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_jobs
import torch

EPOCHS = 3
AIDS = {
    "train.ema": {"decay": 0.9},
    "train.mixup": {"alpha": 0.3},
    "train.input_dropout": 0.3,
    "inputs.image.augment": [{"type": "affine"}, {"type": "noise"}],
}
"""Whatever draws at random in training, beside dropout."""


class Interrupted(Exception):
    """Training was to end here."""


class Losses:
    """Stands in for telemetry: the loss of each step, and an end after one of them."""

    def __init__(self, stop: int | None) -> None:
        self.stop, self.found, self.said = stop, {}, []

    def step(self, measured, steps, epochs) -> None:
        self.found[measured.place.step] = measured.loss

    def counting(self, batches):
        return contextlib.nullcontext()

    def say(self, step, text) -> None:
        self.said.append(text)

    def record(self, step, metrics, **more) -> None:
        if "validation/loss" in metrics and "again" not in more:
            self.found[f"validation {step}"] = metrics["validation/loss"]

    def resume_clock(self) -> None:
        pass


def train(
    folder: Path, job, world: int, stop: int | None = None, before: Callable[[Any], None] | None = None
) -> dict[str, float]:
    """Train in the run folder FOLDER from its newest checkpoint to the end, or until step `stop` is in one.

    `before` may meddle with the worker of each rank. The losses by step, and those of each validation.
    """
    ranks.spawn(_rank, world, job.model_dump_json(), stop, before, folder)
    return json.loads((folder / "losses.json").read_text())


def _rank(
    rank: int,
    world: int,
    job_json: str,
    stop: int | None,
    before: Callable[[Any], None] | None,
    folder: Path,
) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import check
    from rayfuse.train.checkpoints import Saver
    from rayfuse.train.engine import read_options
    from rayfuse.train.loop import Worker

    job, dataset = load_dataset(check(json.loads(job_json), Job, "job"))
    worker = Worker(job, dataset.splits, read_options(job), rank, world)
    worker.telemetry = losses = Losses(stop)
    if rank == 0:
        worker.saver = Saver(str(folder), job.train.checkpoint.keep, worker.goodness)
    if before:
        before(worker)
    worker.go_on(str(folder), print)
    if stop is not None:
        worker.agenda.due = lambda step: step == stop
        save = worker.save

        def save_and_end(metrics=None) -> None:
            save(metrics)
            if worker.position.step >= stop:
                raise Interrupted

        worker.save = save_and_end
    with contextlib.suppress(Interrupted):
        worker.train()
    if worker.saver:
        worker.saver.wait()
        (folder / "losses.json").write_text(json.dumps(losses.found))
        (folder / "said.txt").write_text("\n".join(losses.said))
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
def test_goes_on_after_any_step_as_if_nothing_had_happened(world: int, stage: int, tmp_path: Path) -> None:
    aids = {name: value for name, value in AIDS.items() if stage != 3 or name != "train.ema"}
    job = make_job(tmp_path, **aids, **{"train.deepspeed.stage": stage})
    whole = train(new(tmp_path / "whole"), job, world)
    steps = max(int(step) for step in whole if step.isdigit())
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    first = chance.randrange(1, steps - 1)
    second = chance.randrange(first + 1, steps)
    folder = new(tmp_path / "run")
    pieces = [train(folder, job, world, stop) for stop in (first, second)] + [train(folder, job, world)]
    together: dict[str, float] = {}
    for piece in pieces:
        assert not together.keys() & piece.keys(), (
            f"trained twice; interrupted at {first}, {second} ({seed=})"
        )
        together |= piece
    assert together == pytest.approx(whole, abs=1e-6), f"interrupted at {first}, {second} ({seed=})"


def poison(step: int, worker: Any) -> None:
    """Make all weights NaN at a step, the first time that it is taken."""
    take, poisoned = worker.train_step, []

    def train_step(batches, rows):
        if worker.position.step + 1 == step and not poisoned:
            poisoned.append(step)
            for parameter in worker.engine.module.parameters():
                parameter.data.fill_(float("nan"))
        return take(batches, rows)

    worker.train_step = train_step


def leave_out(step: int, worker: Any) -> None:
    worker.guard.skips = lambda other: other == step


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_rolls_back_from_a_loss_that_is_no_number_and_leaves_its_batch_out(
    world: int, stage: int, tmp_path: Path
) -> None:
    guard = {"action": "rollback", "skip": 0}
    often = {"train.checkpoint": {"steps": 2, "keep": {"last": 2}}}
    job = make_job(tmp_path, **{"train.deepspeed.stage": stage, "train.guard": guard}, **often)
    seed = random.randrange(1 << 30)
    step = random.Random(seed).randrange(4, 15)
    expected = train(new(tmp_path / "expected"), job, world, before=partial(leave_out, step))
    found = train(new(tmp_path / "found"), job, world, before=partial(poison, step))
    assert str(step) not in found
    assert found == pytest.approx(expected, abs=1e-6), f"poisoned at {step} ({seed=})"
    said = (tmp_path / "found" / "said.txt").read_text()
    assert f"at step {step}, on the rows " in said
    assert f"leaving out steps {step} to {step}" in said


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder

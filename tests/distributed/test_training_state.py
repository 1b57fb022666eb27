"""Workers as processes over gloo, without Ray: steps and checkpoints do not depend on the number of workers."""

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_jobs
import torch

from rayfuse.training.telemetry import Telemetry

EPOCHS = 2


class StepRecorder(Telemetry):
    """Record loss, gradient norm, rows and learning rate of each step."""

    def __init__(self, steps: list[tuple[float, ...]]) -> None:
        super().__init__(None, torch.device("cpu"))
        self.recorded = steps

    def log_step(self, step_metrics: Any, steps: int, epochs: int) -> None:
        one = step_metrics
        self.recorded.append((one.loss, one.gradient_norm, one.rows, one.position.lr))


def train_in_processes(folder: Path, job, world: int, stop: int, start: Path | None = None) -> Path:
    """Train until epoch `stop` on `world` processes, from the checkpoint `start` if given; write a checkpoint."""
    folder.mkdir(parents=True)
    ranks.spawn(_rank, world, job.model_dump_json(), stop, start, folder)
    return folder


def _rank(rank: int, world: int, job_json: str, stop: int, start: Path | None, folder: Path) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.data_dependent_init import initialize_from_data
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.distributed import DistributedContext
    from rayfuse.training.optimizer_state import gather_optimizer_state
    from rayfuse.training.state import copy_to_cpu, gather_model, write_checkpoint

    job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
    steps: list[tuple[float, ...]] = []
    trainer = build_trainer(
        job,
        dataset.splits,
        load_deepspeed_config(job),
        DistributedContext(rank, world),
        telemetry=StepRecorder(steps),
    )
    if start:
        trainer.state = trainer.checkpoints.restore(start)
    else:
        initialize_from_data(trainer.engine, trainer.evaluator, trainer.precision, trainer.train_step.ema)
    while trainer.state.epoch < stop:
        trainer.train_epoch(trainer.state.epoch)
        trainer.end_epoch()
    model, moments = (
        copy_to_cpu(gather_model(trainer.engine)),
        copy_to_cpu(gather_optimizer_state(trainer.engine)),
    )
    with trainer.train_step.averaged_weights():
        evaluation = trainer.evaluator.compute_metrics("test", [("image", "text"), ("text",)])
    if rank == 0:
        average = trainer.train_step.ema.tensors if trainer.train_step.ema else None
        write_checkpoint(folder, job, model, moments, trainer.state, average)
        (folder / "evaluation.json").write_text(json.dumps([trainer.state.history, evaluation]))
        (folder / "steps.json").write_text(json.dumps(steps))


def make_job(folder: Path, stage: int, **overrides):
    """Batches of 3 rows: on two workers, most have a rank without any image."""
    settings = {
        "train.epochs": EPOCHS,
        "train.batch_size": 3,
        "train.deepspeed.stage": stage,
        "inputs.image.encoder.dropout": 0.0,
        "inputs.text.encoder.dropout": 0.0,
        "train.modality_dropout": 0.3,
        "train.optimizer.lr": 0.003,
        "train.optimizer.eps": 1e-6,  # 1e-8 turns rounding of 2e-10 in a gradient near 0 into a 50th of a step
        **overrides,
    }
    if not (folder / "train.jsonl").exists():
        tiny_jobs.make_rows(folder, 32, "train")
        tiny_jobs.make_rows(folder, 24, "test")
        tiny_jobs.roughen(folder)
    return tiny_jobs.tiny_job(folder, **settings)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def read_steps(folder: Path) -> list[list[float]]:
    """Loss, gradient norm, rows and learning rate of each step, over all workers."""
    steps: list[list[float]] = json.loads((folder / "steps.json").read_text())
    return steps


def assert_same(first: Path, second: Path, atol: float = 5e-6) -> None:
    """Assert equal tensors up to a small part of a step, which is up to 0.003."""
    mine, theirs = read_tensors(first), read_tensors(second)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-3, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Train with one worker under stage 0, the reference for all others."""
    folder = tmp_path_factory.mktemp("alone")
    return train_in_processes(folder / "out", make_job(folder, stage=0), world=1, stop=EPOCHS)


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2, 3]
)
def test_two_workers_learn_the_same_as_one(alone: Path, stage: int, tmp_path: Path) -> None:
    job = make_job(alone.parent, stage)
    together = train_in_processes(tmp_path / "out", job, world=2, stop=EPOCHS)
    assert_same(alone, together)
    assert_same_evaluation(alone, together)
    for one, other in zip(read_steps(alone), read_steps(together), strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize(
    ("stages", "worlds"),
    [((0, 2), (1, 2)), ((2, 3), (2, 1)), pytest.param((3, 1), (2, 2), marks=pytest.mark.slow)],
)
def test_resumes_exactly_on_other_workers_and_stage(alone: Path, stages, worlds, tmp_path: Path) -> None:
    half = train_in_processes(tmp_path / "half", make_job(alone.parent, stages[0]), worlds[0], stop=1)
    whole = train_in_processes(
        tmp_path / "whole", make_job(alone.parent, stages[1]), worlds[1], EPOCHS, start=half
    )
    assert_same(alone, whole)


def test_gradient_accumulation_changes_nothing(alone: Path, tmp_path: Path) -> None:
    job = make_job(alone.parent, 2, **{"train.gradient_accumulation_steps": 3})
    assert_same(alone, train_in_processes(tmp_path / "out", job, world=1, stop=EPOCHS))


def make_disjoint_job(folder: Path, stage: int, gradient_accumulation_steps: int = 1):
    """One of two workers has rows with an image alone, the other with a text alone, in the whole first epoch."""
    from rayfuse.data.sampler import BatchSampler

    batch = 4
    job = make_job(
        folder,
        stage,
        **{
            "train.batch_size": batch,
            "train.gradient_accumulation_steps": gradient_accumulation_steps,
            "train.modality_dropout": 0.0,
            "data.validation": str(folder / "train.jsonl"),
            "data.test": str(folder / "train.jsonl"),
            "inputs.image.optional": True,
            "inputs.text.optional": True,
        },
    )
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "image" in row][:24]
    plan = BatchSampler(len(rows), batch, gradient_accumulation_steps, job.train.seed)
    for rank, gone in ((0, "text"), (1, "image")):
        for step in range(plan.steps_per_epoch):
            for numbers in plan.step_indices(0, step, rank, 2):
                for number in numbers:
                    rows[number].pop(gone)
    assert all(("image" in row) != ("text" in row) for row in rows)
    tiny_jobs.write_rows(folder / "train.jsonl", rows)
    return job


@pytest.mark.parametrize(
    ("stage", "gradient_accumulation_steps"),
    [(2, 1), (3, 2), *(pytest.param(stage, 2, marks=pytest.mark.slow) for stage in (0, 1, 2))],
)
def test_ranks_whose_rows_hold_disjoint_inputs_for_a_whole_epoch(
    stage: int, gradient_accumulation_steps: int, tmp_path: Path
) -> None:
    job = make_disjoint_job(tmp_path, stage, gradient_accumulation_steps)
    together = train_in_processes(tmp_path / "together", job, world=2, stop=1)
    zero = job.train.model_copy(update={"deepspeed": job.train.deepspeed.model_copy(update={"stage": 0})})
    alone = train_in_processes(tmp_path / "alone", job.model_copy(update={"train": zero}), world=1, stop=1)
    assert_same(alone, together)


_STANDARDIZED = 2e-5
"""These vectors' mean is up to 148 times their std: subtracting it magnifies rounding errors. Without
`align.standardize` the same runs agree to 2e-7."""

AIDS = {
    "train.ema": {"decay": 0.9},
    "train.subset_loss": {"sampling": "random"},
    "inputs.image.augment": [{"type": "affine"}, {"type": "gaussian_noise"}],
    "align.standardize": True,
    "align.loss": [{"type": "contrastive"}, {"type": "consistency"}],
}


def test_augmentation_and_auxiliary_losses_resume_exactly(tmp_path: Path) -> None:
    """Include the contrastive loss, whose negatives are the rows of all workers."""
    alone = train_in_processes(tmp_path / "alone", make_job(tmp_path, 0, **AIDS), world=1, stop=EPOCHS)
    half = train_in_processes(tmp_path / "half", make_job(tmp_path, 1, **AIDS), world=1, stop=1)
    job = make_job(tmp_path, 2, **AIDS)
    together = train_in_processes(tmp_path / "out", job, 2, EPOCHS, start=half)
    assert (together / "raw_weights.safetensors").exists()
    assert_same(alone, together, _STANDARDIZED)
    assert_same_evaluation(alone, together)


def test_augmentation_and_auxiliary_losses_under_stage_3(tmp_path: Path) -> None:
    aids = {name: value for name, value in AIDS.items() if name != "train.ema"}
    alone = train_in_processes(tmp_path / "alone", make_job(tmp_path, 0, **aids), world=1, stop=1)
    together = train_in_processes(tmp_path / "out", make_job(tmp_path, 3, **aids), world=2, stop=1)
    assert_same(alone, together, _STANDARDIZED)


def assert_same_evaluation(first: Path, second: Path) -> None:
    mine, theirs = (json.loads((folder / "evaluation.json").read_text()) for folder in (first, second))
    for a, b in zip(mine[0] + mine[1], theirs[0] + theirs[1], strict=True):
        assert a == pytest.approx(b, abs=1e-4)

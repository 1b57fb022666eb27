"""Generation on two workers: the same loss, gradients and texts as on one, also if their rows have different inputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_generation
import tiny_jobs
import torch

GENERATION = {"metrics": ["exact", "bleu"], "references": "photo", "train": "lora"}
ATTENDING = {**GENERATION, **tiny_generation.CROSS_ATTENTION}
PREFERENCE = {**GENERATION, "type": "preference", "rejected": "worse"}
OPTIONS = {"train.epochs": 1, "train.optimizer": {"type": "sgd", "lr": 0.1}, "train.deepspeed.stage": 0}


def make_job(
    folder: Path, task: dict[str, Any], batch_size: int, family: str = "smollm", **overrides: Any
) -> Any:
    """Twelve training rows of different inputs and reply lengths; the second worker has no row of some batches."""
    if not (folder / "data").exists():
        tiny_generation.make_rows(folder, 13, 5)
        for name in ("train", "test"):
            rows = [{**row, "worse": "no" * (1 + len(row["label"]) % 3)} for row in _rows(folder, name)]
            tiny_jobs.write_rows(folder / "data" / f"{name}.jsonl", rows)
        tiny_jobs.write_rows(folder / "data" / "validation.jsonl", _rows(folder, "test"))
        tiny_jobs.roughen(folder / "data")
    return tiny_generation.generation_job(
        folder,
        family,
        task,
        **{
            "data.validation": str(folder / "data" / "validation.jsonl"),
            "inputs.image.encoder.dropout": 0.0,
            **OPTIONS,
            "train.batch_size": batch_size,
            **overrides,
        },
    )


def _rows(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def _train(rank: int, world: int, jobs: dict[str, str], folder: Path) -> None:
    """Train an epoch of each job; write the weights, the loss of each step and the evaluation."""
    from safetensors.torch import save_file

    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.distributed import DistributedContext
    from rayfuse.training.state import copy_to_cpu, gather_model
    from rayfuse.training.telemetry import Telemetry

    class Losses(Telemetry):
        def log_step(self, step_metrics: Any, steps: int, epochs: int) -> None:
            losses.append(step_metrics.loss)

    for name, job_json in jobs.items():
        losses: list[float] = []
        job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
        context = DistributedContext(rank, world)
        trainer = build_trainer(
            job,
            dataset.splits,
            load_deepspeed_config(job),
            context,
            telemetry=Losses(None, torch.device("cpu")),
        )
        trainer.train_epoch(0)
        weights = copy_to_cpu(gather_model(trainer.engine))
        evaluation = trainer.evaluator.evaluate_final()
        if rank == 0:
            (folder / name).mkdir(parents=True)
            save_file(
                {key: value.contiguous() for key, value in weights.items()},
                folder / name / "weights.safetensors",
            )
            found = {"losses": losses, "metrics": evaluation["metrics"], "by_inputs": evaluation["by_inputs"]}
            found["replies"] = sorted(map(str, evaluation["details"]["answer"]["replies"]))
            (folder / name / "found.json").write_text(json.dumps(found))
        torch.distributed.barrier()


@pytest.mark.parametrize(
    ("family", "task", "stages"),
    [
        ("smollm", GENERATION, (0, 1, 2, 3)),
        ("smollm", ATTENDING, (3,)),
        ("smollm", PREFERENCE, (3,)),
        ("t5", GENERATION, (0, 3)),
    ],
)
def test_workers_and_accumulation_learn_the_same(
    family: str, task: dict[str, Any], stages: tuple[int, ...], tmp_path: Path
) -> None:
    """The loss is a mean over the reply tokens of the global batch (transformers#46731), under every ZeRO stage."""
    from safetensors.torch import load_file

    ranks.spawn(_train, 1, {"alone": make_job(tmp_path, task, 4, family).model_dump_json()}, tmp_path / "out")
    jobs = {
        f"stage {stage}": make_job(tmp_path, task, 4, family, **{"train.deepspeed.stage": stage})
        for stage in stages
    }
    jobs["accumulated"] = make_job(tmp_path, task, 4, family, **{"train.gradient_accumulation_steps": 2})
    ranks.spawn(_train, 2, {name: job.model_dump_json() for name, job in jobs.items()}, tmp_path / "out")
    first = json.loads((tmp_path / "out" / "alone" / "found.json").read_text())
    weights = load_file(tmp_path / "out" / "alone" / "weights.safetensors")
    assert len(first["losses"]) == 4
    for name in jobs:
        found = json.loads((tmp_path / "out" / name / "found.json").read_text())
        assert found["losses"] == pytest.approx(first["losses"], rel=1e-5), name
        assert found["metrics"] == pytest.approx(first["metrics"], rel=1e-4), name
        assert found["replies"] == first["replies"], name
        for key, tensor in load_file(tmp_path / "out" / name / "weights.safetensors").items():
            torch.testing.assert_close(tensor, weights[key], rtol=1e-5, atol=1e-6, msg=f"{name} {key}")


def assert_two_ranks_finish(jobs: dict[str, str], folder: Path, by_inputs: set[str]) -> None:
    """Train a step of each job on two ranks, and assert that both rows have a reply, and each subset of inputs metrics."""
    ranks.spawn(_train, 2, jobs, folder / "out")
    for name in jobs:
        found = json.loads((folder / "out" / name / "found.json").read_text())
        assert len(found["losses"]) == 1
        assert len(found["replies"]) == 2
        assert set(found["by_inputs"]) == by_inputs


@pytest.mark.parametrize(
    ("family", "task", "stages"),
    [
        ("smollm", GENERATION, (0, 3)),
        ("smollm", ATTENDING, (3,)),
        ("smollm", PREFERENCE, (3,)),
        ("t5", GENERATION, (3,)),
        ("bart", GENERATION, (3,)),
    ],
)
def test_workers_whose_rows_have_different_inputs_do_not_wait_for_each_other(
    family: str, task: dict[str, Any], stages: tuple[int, ...], tmp_path: Path
) -> None:
    """One row has only an image and the other only a text (DeepSpeed#7170, ms-swift#9104)."""
    tiny_generation.make_rows(tmp_path, 8, 4)
    rows = _rows(tmp_path, "train")
    photo = next(row for row in rows if "image" in row)
    del photo["text"]
    photo["worse"] = "no"
    other = {"text": "which colour", "label": "long one", "worse": "nothing", "photo": None}
    for name in ("train", "validation", "test"):
        tiny_jobs.write_rows(tmp_path / "data" / f"{name}.jsonl", [photo, other])
    jobs = {
        f"stage {stage}": make_job(
            tmp_path,
            task,
            2,
            family,
            **{"train.deepspeed.stage": stage, "inputs.image.encoder": tiny_generation.PATCHES},
        ).model_dump_json()
        for stage in stages
    }
    assert_two_ranks_finish(jobs, tmp_path, {"image+text", "image", "text"})


def test_workers_of_which_one_has_no_clip_transcribe_without_waiting(tmp_path: Path) -> None:
    """One row has only a clip and the other only an image."""
    tiny_generation.make_speech_rows(tmp_path, 8, 4)
    rows = _rows(tmp_path, "train")
    clip, image = (dict(next(row for row in rows if name in row)) for name in ("audio", "image"))
    clip.pop("image", None)
    image.pop("audio", None)
    image["label"] = "long one"
    for name in ("train", "validation", "test"):
        tiny_jobs.write_rows(tmp_path / "data" / f"{name}.jsonl", [clip, image])
    options = {
        **OPTIONS,
        "data.validation": str(tmp_path / "data" / "validation.jsonl"),
        "train.batch_size": 2,
    }
    jobs = {
        f"stage {stage}": tiny_generation.speech_job(
            tmp_path, **{**options, "train.deepspeed.stage": stage}
        ).model_dump_json()
        for stage in (0, 3)
    }
    assert_two_ranks_finish(jobs, tmp_path, {"audio+image", "audio", "image"})

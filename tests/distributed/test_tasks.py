"""Losses across samples on several workers: two workers learn the same as one."""

import json
from pathlib import Path

import pytest
import ranks
import tiny_jobs
import torch

from rayfuse.model.all_gather import all_gather_with_grad

SIZES = (3, 0, 2)
PAIR = {"inputs": ["image", "text"], "dim": 8}


def test_without_a_process_group_rows_are_unchanged() -> None:
    rows = torch.ones(2, 3)
    found, start = all_gather_with_grad(rows)
    assert found is rows
    assert start == 0


def test_rows_are_gathered_from_ranks_with_different_numbers_of_them() -> None:
    ranks.spawn(_gather, len(SIZES))


def _gather(rank: int, world: int) -> None:
    """Check the gradient of a loss of rank times the sum of squares of all rows: (0 + 1 + 2) · 2x over all ranks."""
    rows = (torch.arange(SIZES[rank] * 2.0).view(-1, 2) + 10 * rank).requires_grad_()
    found, start = all_gather_with_grad(rows)
    assert found.shape == (sum(SIZES), 2)
    assert start == sum(SIZES[:rank])
    torch.testing.assert_close(found[start : start + len(rows)], rows)
    assert found[-1].tolist() == [22, 23]
    (rank * (found**2).sum()).backward()
    torch.testing.assert_close(rows.grad, 6 * rows.detach())


def make_job(folder: Path, stage: int):
    """Five rows in a batch, in queries of four; the last batch leaves the second worker without rows."""
    if not (folder / "train.jsonl").exists():
        for name, n in (("train", 26), ("validation", 12), ("test", 12)):
            path = tiny_jobs.make_rows(folder, n, name)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for i, row in enumerate(rows):
                row |= {"grade": i % 3, "query": f"query {i // 4}"}
            tiny_jobs.write_rows(path, rows)
        tiny_jobs.roughen(folder)
    return tiny_jobs.tiny_job(
        folder,
        **{
            "data.validation": str(folder / "validation.jsonl"),
            "tasks": {
                "find": {"type": "retrieval", **PAIR, "hard_negative_beta": 0.5},
                "match": {"type": "matching", **PAIR},
                "rank": {"type": "ranking", "column": "grade", "query_column": "query"},
                "answer": {"type": "classification", "column": "label"},
            },
            "train.epochs": 1,
            "train.batch_size": 5,
            "train.early_stopping": None,
            "train.optimizer.lr": 0.003,
            "train.deepspeed.stage": stage,
            "inputs.image.encoder.dropout": 0.0,
            "inputs.text.encoder.dropout": 0.0,
        },
    )


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_two_workers_learn_the_same_as_one(stage: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    job = make_job(tmp_path, stage)
    for world in (1, 2):
        ranks.spawn(_train, world, job.model_dump_json(), tmp_path / str(world))
    alone, together = (load_file(tmp_path / name / "model.safetensors") for name in "12")
    for name, tensor in alone.items():
        torch.testing.assert_close(
            tensor, together[name], rtol=1e-3, atol=5e-5, msg=lambda t, n=name: f"{n}: {t}"
        )
    found = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in "12"]
    assert set(found[0]["calibration"]) == {"tasks.match.temperature", "tasks.answer.temperature"}
    for part in found:
        assert part["details"]["answer"]["temperature"] == pytest.approx(
            part["calibration"]["tasks.answer.temperature"], rel=1e-5
        )
    for name in ("rank/ndcg", "find/r1", "find/median_rank", "answer/accuracy"):
        assert found[0]["metrics"][name] == pytest.approx(found[1]["metrics"][name], abs=1e-4)


def _train(rank: int, world: int, job_json: str, folder: Path) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.distributed import DistributedContext
    from rayfuse.training.optimizer_state import gather_optimizer_state
    from rayfuse.training.state import copy_to_cpu, gather_model, read_model, write_checkpoint

    job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
    trainer = build_trainer(job, dataset.splits, load_deepspeed_config(job), DistributedContext(rank, world))
    trainer.train_epoch(0)
    model, moments = (
        copy_to_cpu(gather_model(trainer.engine)),
        copy_to_cpu(gather_optimizer_state(trainer.engine)),
    )
    if rank == 0:
        folder.mkdir()
        write_checkpoint(folder, job, model, moments, trainer.state)
    torch.distributed.barrier()
    evaluation = trainer.final_evaluation.evaluate_weights(read_model(folder))
    if rank == 0:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))

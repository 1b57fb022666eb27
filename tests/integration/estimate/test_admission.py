"""Jobs whose workers have the memory that they need, and others."""

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.estimate.admission import WorkerMemory, find_misfits
from rayfuse.estimate.gpu_specs import GPU_SPECS
from rayfuse.estimate.planner import Planner, PlanRequest
from rayfuse.spec.job import Job

TEXT = {
    "type": "text",
    "max_tokens": 512,
    "encoder": {"type": "transformer", "hidden_size": 32, "layers": 1, "heads": 2},
}
PLACE = "in a pod of `workers.cpu`"


def misfits(job: Job, memory: WorkerMemory, **options: Any) -> list[str]:
    return find_misfits([("trial: ", job)], lambda _: memory, **options)


def test_a_tiny_job_fits(tmp_path: Path) -> None:
    assert misfits(tiny_jobs.tiny_job(tmp_path), WorkerMemory(PLACE, 10**9)) == []


def test_a_large_batch_of_large_images(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.image.size": 1024, "train.batch_size": 256})
    (problem,) = misfits(job, WorkerMemory(PLACE, 30 * 10**9))
    assert problem.startswith("trial: each worker needs ")
    assert "and has 30.00 GB in a pod of `workers.cpu`; smallest layout that fits: " in problem
    assert "--set train.gradient_accumulation_steps=" in problem


def test_a_model_that_no_layout_holds(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, fusion={"type": "concat", "hidden": 40_000})
    (problem,) = misfits(job, WorkerMemory(PLACE, 4 * 10**9))
    assert "; no layout fits, down to micro-batches of one row; " in problem
    gpu = {"compute.gpus_per_worker": 1, "train.precision": "bf16"}
    job = tiny_jobs.tiny_job(tmp_path, fusion={"type": "concat", "hidden": 40_000}, **gpu)
    (problem,) = misfits(job, WorkerMemory(PLACE, 10**12, GPU_SPECS["T4"]))
    assert "of GPU memory" in problem
    assert misfits(job, WorkerMemory(PLACE, 10**12)) == []  # an unknown GPU


def test_long_texts_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = tiny_jobs.tiny_job(tmp_path, inputs={"text": TEXT})

    def peak(length: int) -> int:
        request = PlanRequest(rows=job.train.batch_size, lengths={"text": length})
        return Planner.from_job(job, request).predict_peak_bytes(600_000_000)

    with caplog.at_level(logging.WARNING, "rayfuse"):
        assert misfits(job, WorkerMemory(PLACE, (peak(64) + peak(512)) // 2)) == []
    assert "if values have the maximum length" in caplog.text
    assert misfits(job, WorkerMemory(PLACE, peak(64) - 1))


def test_models_of_the_cluster_are_not_estimated(tmp_path: Path) -> None:
    encoder = {"type": "huggingface", "model": "/models/minilm"}
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.text": {"type": "text", "encoder": encoder}})
    assert misfits(job, WorkerMemory(PLACE, 1), loads_models=False) == []
    assert misfits(job, WorkerMemory(PLACE, 1)) == []  # there is no such folder

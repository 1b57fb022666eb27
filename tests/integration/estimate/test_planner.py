"""Layouts that fit, training time, and invalid requests."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows
from rayfuse.errors import DataError, SpecError
from rayfuse.estimate import baseline, gpu_specs
from rayfuse.estimate.comparison import compare_with_plan
from rayfuse.estimate.planner import Planner, PlanRequest

BASE = 500_000_000
RATE = 1e9


@pytest.fixture(autouse=True)
def _fixed_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "measure", lambda libraries: BASE)
    monkeypatch.setattr(gpu_specs, "measure_cpu_flops", lambda threads: RATE)


def small_job(folder: Path, **overrides: Any) -> Any:
    """Return a job without rows or files."""
    text = {
        "type": "text",
        "max_tokens": 8,
        "encoder": {"type": "conv", "hidden_size": 32},
    }
    return tiny_jobs.tiny_job(folder, **{"inputs": {"text": text}, "compute.workers": 2, **overrides})


def request(**more: Any) -> PlanRequest:
    return PlanRequest(**{"rows": 1000, **more})


def test_a_job_on_a_cpu(tmp_path: Path) -> None:
    found = Planner.from_job(small_job(tmp_path), request(memory=4_000_000_000)).plan()
    assert [(each.stage, each.offload) for each in found.layouts] == [(stage, "none") for stage in range(4)]
    assert all(each.phase.device["process"] == BASE for each in found.layouts)
    assert found.current.memory_limit == 2_000_000_000
    assert found.current.micro_batch_size == 8
    assert found.smallest is not None
    assert (found.smallest.workers, found.smallest.stage) == (1, 0)
    assert found.time is not None
    assert found.time.steps == 63 * 2
    assert found.time.step == pytest.approx(found.time.flops / (2 * 0.6 * RATE))
    assert "assumed: 1000 rows" in found.notes[0]


def test_folds_are_trained_before(tmp_path: Path) -> None:
    folds = {"data.validation": {"fraction": 0.2}, "data.test": None, "data.folds": 4}
    notes = Planner.from_job(small_job(tmp_path, **folds), request()).plan().notes
    assert (
        "cross-validation: 4 models of 69% of the training rows are trained before; all of it takes 3.8 times as long"
    ) in notes


def test_higher_stages_need_less_gpu_memory(tmp_path: Path) -> None:
    job = small_job(tmp_path, **{"train.precision": "auto"})
    found = Planner.from_job(job, request(gpus=8, gpu_spec=gpu_specs.find_gpu_spec("h100"))).plan()
    by_name = {(each.stage, each.offload): each.phase.device for each in found.layouts}
    assert set(by_name) == {
        *((stage, "none") for stage in range(4)),
        *((stage, "optimizer") for stage in (1, 2, 3)),
        (3, "optimizer+parameters"),
    }
    assert by_name[2, "none"]["optimizer"] * 8 == pytest.approx(by_name[0, "none"]["optimizer"], rel=0.02)
    assert "optimizer" not in by_name[2, "optimizer"]
    assert by_name[3, "none"]["weights"] < by_name[2, "none"]["weights"]
    assert found.precision == "bf16"
    assert found.current.workers == 2  # of the job itself, whatever GPUs there are


def test_audio_shorter_than_a_second(tmp_path: Path) -> None:
    found = Planner.from_job(tiny_jobs.tiny_job(tmp_path, audio=True), request()).plan()
    assert {each.length_fraction for each in found.activations} == {1, 0.5}


def test_fp16_needs_gpus(tmp_path: Path) -> None:
    job = small_job(tmp_path, **{"train.precision": "fp16"})
    assert (
        Planner.from_job(job, request(gpus=2, gpu_spec=gpu_specs.find_gpu_spec("h100"))).precision == "fp16"
    )
    with pytest.raises(SpecError, match="train.precision: fp16 needs a GPU"):
        Planner.from_job(job, request())


def test_the_smallest_layout_may_accumulate_gradients(tmp_path: Path) -> None:
    encoder = {"type": "transformer", "hidden_size": 32, "layers": 1, "heads": 2}
    changes = {"train.batch_size": 16, "compute.workers": 1, "inputs.text.encoder": encoder}
    job = small_job(tmp_path, **changes)
    planner = Planner.from_job(job, request(rows=8, gpus=1, gpu_spec=gpu_specs.find_gpu_spec("T4")))
    fitting = planner.estimate_memory(1, {"zero_optimization": {"stage": 0}}, 4).phase.total
    memory = gpu_specs.GPU_RESERVED_BYTES + fitting + 1000
    smallest = Planner.from_job(job, request(rows=8, gpus=1, gpu_memory=memory)).plan().smallest
    assert smallest is not None
    assert smallest.gradient_accumulation_steps > 1
    assert smallest.fits
    nothing = Planner.from_job(
        job, request(rows=8, gpus=1, gpu_memory=gpu_specs.GPU_RESERVED_BYTES + 1000)
    ).plan()
    assert nothing.smallest is None
    assert nothing.time is None


def test_rows_are_read_unless_the_request_has_their_number(tmp_path: Path) -> None:
    planner = Planner.from_job(small_job(tmp_path, **{"inputs.text.max_tokens": 512}), PlanRequest())
    assert planner.rows == 36  # of 48, a quarter of which are for validation
    assert planner.job.inputs["text"].max_tokens < 32
    assert planner.notes[0] == "read: 48 rows, 36 of them for training"
    longer = Planner.from_job(planner.job, PlanRequest(lengths={"text": 5}))
    assert longer.job.inputs["text"].max_tokens == 5


def test_invalid_requests(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    absent = job.model_copy(
        update={"data": job.data.model_copy(update={"train": str(tmp_path / "absent.jsonl")})}
    )
    with pytest.raises(DataError, match="absent.jsonl.*\n.*--rows N"):
        Planner.from_job(absent, PlanRequest())
    with pytest.raises(SpecError, match="gpus 4: the memory of each is missing"):
        PlanRequest(gpus=4)
    with pytest.raises(SpecError, match="device H10: not a known GPU; did you mean h100"):
        gpu_specs.find_gpu_spec("H10")
    encoder = {"type": "huggingface", "model": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere: "):
        Planner.from_job(small_job(tmp_path, **{"inputs.text.encoder": encoder}), request())


def test_a_run_compared_with_its_plan(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows, _ = read_job_rows(job.data.train, job)
    job = fit(job, rows)
    measured = {"peak_bytes": 600_000_000, "baseline_bytes": BASE, "on_gpu": False}
    metrics, line = compare_with_plan(job, rows, measured)
    assert metrics["memory/peak_bytes"] == 600_000_000
    assert 1.1 * BASE < metrics["memory/predicted_bytes"] < 1.2 * BASE
    assert line == "peak memory of a worker: 0.60 GB; predicted: 0.57 GB"
    _, line = compare_with_plan(job, rows, {**measured, "peak_bytes": 2 * BASE})
    assert "docs/resource-estimation.md" in line


def test_a_run_that_cannot_be_predicted_does_not_fail(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)  # not fitted
    metrics, line = compare_with_plan(job, [], {"peak_bytes": 7, "baseline_bytes": 1, "on_gpu": True})
    assert metrics == {"memory/peak_bytes": 7.0}
    assert "not predicted: " in line


def test_every_known_gpu_has_a_peak() -> None:
    assert all(each.peak_flops_16bit > each.peak_flops_fp32 for each in gpu_specs.GPU_SPECS.values())
    assert gpu_specs.find_gpu_spec("rtx 4090") is gpu_specs.GPU_SPECS["RTX 4090"]

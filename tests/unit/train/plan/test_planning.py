"""Which layout fits, how long a job takes, and what is asked of it wrongly."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.reading import read_job_rows
from rayfuse.errors import DataError, SpecError
from rayfuse.train.plan import baseline, cards
from rayfuse.train.plan.comparison import beside_plan
from rayfuse.train.plan.planning import Planner, Question

BASE = 500_000_000
RATE = 1e9


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "measure", lambda: BASE)
    monkeypatch.setattr(cards, "this_cpu", lambda threads: RATE)


def small_job(folder: Path, **overrides: Any) -> Any:
    """Without rows or files."""
    text = {
        "type": "text",
        "max_tokens": 8,
        "encoder": {"type": "transformer", "width": 32, "layers": 1, "heads": 2},
    }
    return tiny_jobs.tiny_job(folder, **{"inputs": {"text": text}, "compute.workers": 2, **overrides})


def question(**more: Any) -> Question:
    return Question(**{"rows": 1000, **more})


def test_a_job_on_a_cpu(tmp_path: Path) -> None:
    found = Planner.of(small_job(tmp_path), question(memory=4_000_000_000)).plan()
    assert [(each.stage, each.offload) for each in found.layouts] == [(stage, "none") for stage in range(4)]
    assert all(each.phase.device["process"] == BASE for each in found.layouts)
    assert found.own.room == 2_000_000_000
    assert found.own.rows == 8
    assert found.smallest is not None
    assert (found.smallest.workers, found.smallest.stage) == (1, 0)
    assert found.time is not None
    assert found.time.steps == 63 * 2
    assert found.time.step == pytest.approx(found.time.flops / (2 * 0.6 * RATE))
    assert "not read: the rows" in found.told[0]


def test_stages_need_less_and_less_of_a_gpu(tmp_path: Path) -> None:
    job = small_job(tmp_path, **{"train.precision": "auto"})
    found = Planner.of(job, question(gpus=8, card=cards.card("h100"))).plan()
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
    assert found.own.workers == 2  # of the job itself, whatever GPUs there are


def test_clips_of_less_than_a_second(tmp_path: Path) -> None:
    found = Planner.of(tiny_jobs.tiny_job(tmp_path, audio=True), question()).plan()
    assert {each.share for each in found.activations} == {1, 0.5}


def test_fp16_is_planned_on_gpus_alone(tmp_path: Path) -> None:
    job = small_job(tmp_path, **{"train.precision": "fp16"})
    assert Planner.of(job, question(gpus=2, card=cards.card("h100"))).precision == "fp16"
    with pytest.raises(SpecError, match="train.precision: fp16 needs a GPU"):
        Planner.of(job, question())


def test_the_smallest_layout_accumulates_before_it_gives_up(tmp_path: Path) -> None:
    job = small_job(tmp_path, **{"train.batch_size": 16, "compute.workers": 1})
    whole = Planner.of(job, question(rows=8, gpus=1, card=cards.card("T4")))
    fitting = whole.memory(1, {"zero_optimization": {"stage": 0}}, 4).phase.total
    room = cards.GPU_RESERVE + fitting + 1000
    smallest = Planner.of(job, question(rows=8, gpus=1, gpu_memory=room)).plan().smallest
    assert smallest is not None
    assert smallest.accumulate > 1
    assert smallest.fits
    nothing = Planner.of(job, question(rows=8, gpus=1, gpu_memory=cards.GPU_RESERVE + 1000)).plan()
    assert nothing.smallest is None
    assert nothing.time is None


def test_rows_are_read_where_nobody_says_how_many_there_are(tmp_path: Path) -> None:
    planner = Planner.of(small_job(tmp_path, **{"inputs.text.max_tokens": 512}), Question())
    assert planner.rows == 36  # of 48, a quarter of which are for validation
    assert planner.job.inputs["text"].max_tokens < 32
    assert planner.told[0] == "read: 48 rows, 36 of them for training"
    longer = Planner.of(planner.job, Question(lengths={"text": 5}))
    assert longer.job.inputs["text"].max_tokens == 5


def test_what_is_refused(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    absent = job.model_copy(
        update={"data": job.data.model_copy(update={"train": str(tmp_path / "absent.jsonl")})}
    )
    with pytest.raises(DataError, match="absent.jsonl.*\n.*--rows N"):
        Planner.of(absent, Question())
    with pytest.raises(SpecError, match="--gpus: how large are they"):
        Question(gpus=4)
    with pytest.raises(SpecError, match="--device H10: not a known card; did you mean h100"):
        cards.card("H10")
    encoder = {"type": "huggingface", "model": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere: "):
        Planner.of(small_job(tmp_path, **{"inputs.text.encoder": encoder}), question())


def test_a_run_beside_its_plan(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows, _ = read_job_rows(job.data.train, job)
    job = fit(job, rows)
    measured = {"peak_bytes": 600_000_000, "baseline_bytes": BASE, "on_gpu": False}
    metrics, line = beside_plan(job, rows, measured)
    assert metrics["memory/peak_bytes"] == 600_000_000
    assert BASE < metrics["memory/predicted_bytes"] < 1.01 * BASE
    assert line == "peak memory of a worker: 0.60 GB; planned: 0.50 GB"
    _, line = beside_plan(job, rows, {**measured, "peak_bytes": 2 * BASE})
    assert "MALLOC_MMAP_THRESHOLD_=1048576" in line


def test_a_run_that_cannot_be_planned_is_not_lost(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)  # not fitted
    metrics, line = beside_plan(job, [], {"peak_bytes": 7, "baseline_bytes": 1, "on_gpu": True})
    assert metrics == {"memory/peak_bytes": 7.0}
    assert "not planned: " in line


def test_every_card_has_a_peak() -> None:
    assert all(each.half > each.single for each in cards.CARDS.values())
    assert cards.card("rtx 4090") is cards.CARDS["RTX 4090"]

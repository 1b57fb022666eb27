"""Presets of `rayfuse.train` and `rayfuse.init`."""

from pathlib import Path

import pytest
import tiny_jobs

import rayfuse
from rayfuse.api.presets import with_preset
from rayfuse.errors import SpecError
from rayfuse.spec.job import Job


def make_job(folder: Path) -> Job:
    rows = tiny_jobs.make_rows(folder, 20)
    return Job(
        name="plain",
        data={"train": str(rows)},
        inputs={"text": {"type": "text"}},
        tasks={"label": {"type": "classification"}},
        train={"epochs": 2},
    )


def test_options_that_the_job_leaves_out_are_set(tmp_path: Path) -> None:
    job = with_preset(make_job(tmp_path), "fast")
    assert job.train.epochs == 2
    assert job.train.time_budget == 120
    assert with_preset(job, None) == job


def test_an_unknown_quality_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"quality: 'high' is not one of: fast, medium, best"):
        with_preset(make_job(tmp_path), "high")  # type: ignore[arg-type]


def test_init_writes_the_options_of_a_preset(tmp_path: Path) -> None:
    rows = [{"size": n, "kind": "ab"[n % 2], "label": "yn"[n % 3 == 0]} for n in range(40)]
    path = tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    job = rayfuse.init(str(path), "label", quality="fast")
    assert "time_budget: 120.0" in job.to_yaml()
    plain = rayfuse.init(str(path), "label", **{"data.test": str(path)})
    assert plain.data.test == str(path)
    plain = rayfuse.init(str(path), "label")
    assert with_preset(plain, "fast") == job
    in_memory = rayfuse.init(rows, "label", quality="fast")
    assert in_memory.train == job.train

"""Facts about training rows."""

import json
from pathlib import Path

import tiny_jobs

from rayfuse.presets import InputFacts, gather_facts
from rayfuse.spec.job import Job


def test_rows_and_lengths(tmp_path: Path) -> None:
    tiny_jobs.make_rows(tmp_path, 60, audio=True)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    series = [{**row, "series": [[0.0] * 7, [1.0] * 7]} for row in rows]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", series)
    job = Job(
        name="facts",
        data={"train": str(tmp_path / "train.jsonl"), "validation": {"fraction": 0.2}},
        inputs={
            "image": {"type": "image", "optional": True},
            "audio": {"type": "audio", "optional": True},
            "text": {"type": "text"},
            "series": {"type": "timeseries", "channels": 2},
        },
        tasks={"label": {"type": "classification"}},
    )
    facts = gather_facts(job)
    assert facts.rows == 48
    assert facts.inputs == {
        "image": InputFacts(8),
        "audio": InputFacts(0.1, sample_rate=8000),
        "text": InputFacts(len("which colour is this?"), distinct=6),
        "series": InputFacts(7),
    }


def test_only_a_sample_of_many_rows_is_measured(tmp_path: Path) -> None:
    rows = tiny_jobs.write_rows(tmp_path / "rows.jsonl", [{"text": f"{n}", "y": n % 2} for n in range(5000)])
    job = Job(
        name="facts",
        data={"train": str(rows)},
        inputs={"text": {"type": "text"}},
        tasks={"y": {"type": "classification"}},
    )
    facts = gather_facts(job)
    assert facts.rows == 4500
    assert facts.inputs["text"].distinct in range(250, 513)

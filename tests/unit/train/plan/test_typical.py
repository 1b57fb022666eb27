"""Batches without rows: lengths, made-up classes, and every kind of input and task."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.reading import read_job_rows
from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.train.plan.simulation import Simulation
from rayfuse.train.plan.typical import assumed, longest, typical_batch, with_lengths

EVERY_KIND: dict[str, Any] = {
    "inputs": {
        "words": {"type": "text", "max_tokens": 6, "encoder": {"type": "gru", "width": 8, "pool": "none"}},
        "clip": {"type": "video", "frames": 3, "size": 8,
                 "encoder": {"type": "frames", "encoder": {"type": "conv", "width": 4}}},
        "sensor": {"type": "series", "channels": 2, "max_steps": 9, "encoder": {"type": "conv", "width": 8}},
        "columns": {"type": "table", "columns": {"age": "number", "city": "category", "what": "inferred"},
                    "encoder": {"type": "mlp"}},
        "bought": {"type": "sequence", "length": 7, "encoder": {"type": "embedding", "width": 8}},
        "photos": {"type": "image", "size": 8, "max_items": 2, "encoder": {"type": "conv", "width": 4}},
    },
    "tasks": {
        "label": {"type": "classification", "class_weights": "balanced"},
        "marks": {"type": "multi_label"},
        "stars": {"type": "ordinal"},
        "price": {"type": "regression"},
        "tags": {"type": "tagging", "input": "words"},
        "rank": {"type": "ranking", "group": "query"},
        "match": {"type": "matching", "inputs": ["clip", "photos"], "dim": 8},
    },
    "train.early_stopping": None,
}  # fmt: skip


def every_kind(folder: Path) -> Job:
    job: Job = tiny_jobs.tiny_job(folder, **EVERY_KIND)
    return job


def test_every_kind_of_input_and_task_without_a_row(tmp_path: Path) -> None:
    job, told = assumed(every_kind(tmp_path))
    assert "label: 10 classes" in told
    batch = typical_batch(job, 3)
    shapes = {
        name: {k: tuple(v.shape) for k, v in (part.features or {}).items()}
        for name, part in batch.inputs.items()
    }
    assert shapes["words"]["input_ids"] == (3, 6)
    assert shapes["clip"]["frames"] == (3, 3, 3, 8, 8)
    assert shapes["sensor"]["values"] == (3, 2, 9)
    assert shapes["columns"]["numbers"] == (3, 2)
    assert shapes["bought"]["items"] == (3, 7)
    assert shapes["photos"]["pixel_values"] == (6, 3, 8, 8)
    assert Simulation(job, "fp32").step(3).flops > 0


def test_lengths_are_those_asked_for(tmp_path: Path) -> None:
    job, _ = assumed(every_kind(tmp_path))
    shorter = typical_batch(with_lengths(job, {"words": 5, "sensor": 4}), 2).inputs
    assert shorter["words"].features["input_ids"].shape == (2, 5)  # type: ignore[index]
    assert shorter["sensor"].features["values"].shape == (2, 2, 4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [
        ({"word": 5}, "--length word=5: no input is called so; one of: words, clip"),
        ({"photos": 5}, "inputs of type image have no length"),
        ({"words": 7}, "inputs.words.max_tokens allows more than 0 and up to 6; raise it with --set"),
        ({"words": 0}, "more than 0"),
    ],
)
def test_lengths_that_are_refused(lengths: dict[str, float], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        with_lengths(every_kind(tmp_path), lengths)


def test_the_longest_text_of_the_first_rows(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows, _ = read_job_rows(job.data.train, job)
    found = longest(fit(job, rows), rows)
    assert found == {"text": max(len(row.values["text"].encode()) for row in rows)}

"""Synthetic batches: lengths, assumed statistics, and every type of input and task."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows
from rayfuse.errors import SpecError
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import (
    make_synthetic_batch,
    max_input_lengths,
    with_assumed_statistics,
    with_lengths,
)
from rayfuse.spec.job import Job

EVERY_KIND: dict[str, Any] = {
    "inputs": {
        "words": {"type": "text", "max_tokens": 6, "encoder": {"type": "gru", "hidden_size": 8, "pool": "none"}},
        "clip": {"type": "video", "num_frames": 3, "size": 8,
                 "encoder": {"type": "frames", "encoder": {"type": "conv", "hidden_size": 4}}},
        "sensor": {"type": "timeseries", "channels": 2, "max_steps": 9, "encoder": {"type": "conv", "hidden_size": 8}},
        "columns": {"type": "tabular", "columns": {"age": "number", "city": "category", "what": "inferred"},
                    "encoder": {"type": "mlp"}},
        "bought": {"type": "item_sequence", "max_length": 7, "encoder": {"type": "embedding", "hidden_size": 8}},
        "photos": {"type": "image", "size": 8, "max_items": 2, "encoder": {"type": "conv", "hidden_size": 4}},
    },
    "tasks": {
        "label": {"type": "classification", "class_weights": "balanced"},
        "marks": {"type": "multi_label"},
        "stars": {"type": "ordinal"},
        "price": {"type": "regression"},
        "tags": {"type": "tagging", "input": "words"},
        "rank": {"type": "ranking", "query_column": "query"},
        "match": {"type": "matching", "inputs": ["clip", "photos"], "dim": 8},
    },
    "train.early_stopping": None,
}  # fmt: skip


def every_kind(folder: Path) -> Job:
    job: Job = tiny_jobs.tiny_job(folder, **EVERY_KIND)
    return job


def test_every_kind_of_input_and_task_without_a_row(tmp_path: Path) -> None:
    job, assumed = with_assumed_statistics(every_kind(tmp_path))
    assert "label: 10 classes" in assumed
    batch = make_synthetic_batch(job, 3)
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
    assert Simulation(job, "fp32").simulate_step(3).flops > 0


def test_shorter_lengths(tmp_path: Path) -> None:
    job, _ = with_assumed_statistics(every_kind(tmp_path))
    shorter = make_synthetic_batch(with_lengths(job, {"words": 5, "sensor": 4}), 2).inputs
    assert shorter["words"].features["input_ids"].shape == (2, 5)  # type: ignore[index]
    assert shorter["sensor"].features["values"].shape == (2, 2, 4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [
        ({"word": 5}, "--length word=5: unknown input; use one of: words, clip"),
        ({"photos": 5}, "inputs of type image have no length"),
        ({"words": 7}, "inputs.words.max_tokens allows more than 0 and up to 6; raise it with --set"),
        ({"words": 0}, "more than 0"),
    ],
)
def test_invalid_lengths_are_rejected(lengths: dict[str, float], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        with_lengths(every_kind(tmp_path), lengths)


def test_max_input_lengths_of_rows(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows, _ = read_job_rows(job.data.train, job)
    found = max_input_lengths(fit(job, rows), rows)
    assert found == {"text": max(len(row.values["text"].encode()) for row in rows)}

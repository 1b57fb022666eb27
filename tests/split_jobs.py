"""Jobs over rows with a number `n`, to test which rows are in which split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_jobs

from rayfuse.data.ingest import read_splits

Rows = list[dict[str, Any]]
BOTH = {"data.validation": {"fraction": 0.1}, "data.test": {"fraction": 0.2}}


def make_job(folder: Path, rows: Rows, **options: Any) -> Any:
    """Return a job of texts that holds out validation and test rows."""
    tiny_jobs.write_rows(folder / "train.jsonl", rows)
    job = tiny_jobs.tiny_job(folder, **{**BOTH, **options})
    return job.model_copy(update={"inputs": {"text": job.inputs["text"]}})


def numbers(job: Any, map_fn: Any = map) -> dict[str, set[int]]:
    """Return the values of `n` in each split."""
    splits, _ = read_splits(job, map_fn=map_fn)
    return {name: {row.values["n"] for row in rows} for name, rows in splits.items()}


def make_rows(count: int, **columns: Callable[[int], Any]) -> Rows:
    return [
        {"n": i, "text": f"text {i}", "label": "even" if i % 2 == 0 else "odd"}
        | {name: value(i) for name, value in columns.items()}
        for i in range(count)
    ]

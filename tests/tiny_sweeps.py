"""A sweep over the tiny job, as a checked space: no Ray, no rows."""

import json
from pathlib import Path
from typing import Any

import tiny_jobs

from rayfuse.spec.space import Space, load_sweep

CONCAT, TRANSFORMER = {"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1}
SPACE = {
    "fusion": {"choice": [CONCAT, TRANSFORMER]},
    "fusion.heads": {"choice": [1, 2, 4], "when": {"fusion.type": "transformer"}},
    "train.optimizer.lr": {"loguniform": [1e-3, 1e-1]},
    "train.input_dropout": {"uniform": [0.0, 0.5]},
    "align.dim": {"choice": [8, 16]},
}


def make_space(
    folder: Path, search: dict[str, Any], space: dict[str, Any] = SPACE, metric: str = "answer/accuracy"
) -> Space:
    (folder / "job.yaml").write_text(json.dumps(tiny_jobs.job_content(folder)))
    content = {
        "kind": "sweep",
        "name": "s",
        "job": "job.yaml",
        "metric": metric,
        "search": search,
        "space": space,
    }
    (folder / "sweep.yaml").write_text(json.dumps(content))
    return load_sweep(folder / "sweep.yaml", [], {})

"""A sweep over the tiny job, as a validated search space, without Ray and rows."""

import json
from pathlib import Path
from typing import Any

import tiny_jobs

from rayfuse.spec.search_space import SearchSpace, load_sweep

CONCAT, TRANSFORMER = {"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1}
SPACE = {
    "fusion": {"choice": [CONCAT, TRANSFORMER]},
    "fusion.heads": {"choice": [1, 2, 4], "when": {"fusion.type": "transformer"}},
    "train.optimizer.lr": {"loguniform": [1e-3, 1e-1]},
    "train.modality_dropout": {"uniform": [0.0, 0.5]},
    "align.dim": {"choice": [8, 16]},
}


def make_space(
    folder: Path,
    search: dict[str, Any],
    space: dict[str, Any] = SPACE,
    metric: str = "answer/accuracy",
    **more: Any,
) -> SearchSpace:
    """Return the space of a sweep over the tiny job; `more` are further keys of the sweep."""
    (folder / "job.yaml").write_text(json.dumps(tiny_jobs.job_content(folder)))
    content = {
        "kind": "sweep",
        "name": "s",
        "job": "job.yaml",
        "metric": metric,
        "search": search,
        "space": space,
        **more,
    }
    (folder / "sweep.yaml").write_text(json.dumps(content))
    return load_sweep(folder / "sweep.yaml", environment={})

"""Peak memory of the driver and of a training worker by the number of classes, from rows to a registered version.

python bench/classes.py [TASK CLASSES ROWS]     TASK: classification or multi_label
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import peak_megabytes, run_process

CASES = (("classification", 1000, 3000), ("multi_label", 10_000, 3000))
DRIVER_LIMIT = 1500
"""MB."""
_LABELS_PER_ROW = 5


def run() -> None:
    """Print the peaks of every case."""
    for case in CASES:
        measure(*case)


def measure(task: str, classes: int, rows: int) -> None:
    """Print the peaks of one case."""
    found = run_process(__file__, "train", task, classes, rows)
    print(
        f"classes     {task:<14} {classes:>6,} classes, {rows:,} rows   driver {found['driver']:6.1f} MB   at most {DRIVER_LIMIT}   "
        f"worker {found['worker']:6.1f} MB   registered version {found['version']} in {found['seconds']:.0f} s",
        flush=True,
    )


def train(task: str, classes: int, rows: int) -> dict[str, Any]:
    """Train one epoch in this process as its driver, and register the model."""
    import rayfuse

    with tempfile.TemporaryDirectory(prefix="rayfuse-classes-") as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows(task, classes, rows)))
        started = time.perf_counter()
        result = rayfuse.train(_job(task, classes, path, folder), verbose=False)
        seconds = time.perf_counter() - started
        evaluation = json.loads(Path(result.run, "evaluation.json").read_text())
    return {
        "driver": peak_megabytes(),
        "worker": evaluation["memory"]["peak_bytes"] / 1e6,
        "version": result.version,
        "seconds": seconds,
    }


def _rows(task: str, classes: int, rows: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    if task == "classification":
        numbers = [number % classes for number in range(rows)]
        chance.shuffle(numbers)
        return [
            {"note": f"item {number} of line {number % 37}", "label": f"class {number}"} for number in numbers
        ]
    chosen = (chance.sample(range(classes), _LABELS_PER_ROW) for _ in range(rows))
    return [
        {
            "note": " ".join(f"item {number}" for number in numbers),
            "label": [f"class {number}" for number in numbers],
        }
        for numbers in chosen
    ]


def _job(task: str, classes: int, rows: Path, folder: str) -> dict[str, Any]:
    return {
        "kind": "job",
        "name": "classes",
        "data": {"train": str(rows), "validation": {"fraction": 0.2}},
        "inputs": {"note": {"type": "text", "max_tokens": 48, "encoder": {"type": "conv"}}},
        "fusion": {"type": "concat"},
        "tasks": {"label": {"type": task, "classes": [f"class {number}" for number in range(classes)]}},
        "train": {"epochs": 1, "batch_size": 128},
        "output": {"storage": f"{folder}/runs", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    elif sys.argv[1:]:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        run()

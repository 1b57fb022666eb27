"""Share of the time that a worker waits for data, decoding by itself and on two more nodes of the cluster.

Each row takes 20 ms to arrive, and each step of 32 rows 200 ms, both without using a processor, so that the nodes may
share a machine: the worker alone needs 640 ms for the rows of a step.

python bench/decoding.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS, BATCH, EPOCHS = 960, 32, 2
LIMIT = 0.10


def run() -> None:
    """Print the data wait of both."""
    sys.path.append(str(ROOT / "tests"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    from nodes import Nodes

    for place, nodes in (("workers", (1,)), ("cluster", (1, 4, 4))):
        cluster = Nodes(*nodes)
        try:
            wait = _measure(place, cluster.environment)
        finally:
            cluster.stop()
        limit = f"   at most {LIMIT:.0%}" if place == "cluster" else ""
        print(
            f"decoding    compute.decode: {place:<8} data wait {wait:.1%} of a step (median){limit}",
            flush=True,
        )


def _measure(place: str, environment: dict[str, str]) -> float:
    """Return the median data wait of the steps after the first ones of a run."""
    with tempfile.TemporaryDirectory(prefix="rayfuse-decoding-") as folder:
        rows = [{"number": number, "label": number % 2} for number in range(ROWS)]
        Path(folder, "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        Path(folder, "job.yaml").write_text(json.dumps(_job(place)))
        subprocess.run(
            [Path(sys.executable).with_name("rayfuse"), "train", "job.yaml"],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        [journal] = Path(folder, "runs").glob("decoding/*/metrics.jsonl")
        metrics = [json.loads(line).get("metrics", {}) for line in journal.read_text().splitlines()]
        waits = [found["train/data_wait"] for found in metrics if "train/data_wait" in found]
        return statistics.median(waits[1:])


def _job(place: str) -> dict[str, object]:
    return {
        "kind": "job",
        "name": "decoding",
        "data": {"train": "rows.jsonl", "validation": {"fraction": 0.1}},
        "inputs": {
            "number": {"type": "slow_parts:SlowNumbers", "encoder": {"type": "slow_parts:SlowLinear"}}
        },
        "fusion": {"type": "concat"},
        "tasks": {"label": {"type": "classification"}},
        "train": {"epochs": EPOCHS, "batch_size": BATCH},
        "compute": {"decode": place, "sample_cache": 0},
    }


if __name__ == "__main__":
    run()

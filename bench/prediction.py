"""Rate of `rayfuse predict --data` compared with `rayfuse evaluate`, on the same rows and model in one process.

The models have one input, so that an evaluation has one forward pass per row: an image with a residual network, where the
network takes most of the time, and a small table, where reading and writing do. The sides alternate, so that other load
affects both; on a busy machine, use the ratio of processor time.

python bench/prediction.py     ROUNDS is the number of turns of each side
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LIMIT = 0.8
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "image": (256, {"type": "image", "size": 32, "encoder": {"type": "resnet"}}),
    "table": (4096, {"type": "tabular", "columns": ["age", "city"], "encoder": {"type": "mlp"}}),
}
"""Number of rows and input of each model."""
_IMAGES = 100


def run() -> None:
    """Print the rows per second of both, and their ratio."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_jobs import make_model_folder

    import rayfuse
    from rayfuse.evaluation.evaluate import evaluate_folder

    for name, (count, source) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="rayfuse-prediction-") as temporary:
            folder = Path(temporary)
            job = _make_job(folder, source)
            data = str(_write_rows(folder / "rows.jsonl", count))
            model = make_model_folder(folder, steps=0, job=job)
            options = {"output": folder / "out.parquet", "resume": False, "verbose": False}
            sides = {
                "predict": partial(rayfuse.predict, rayfuse.load_model(model), data, **options),
                "evaluate": partial(evaluate_folder, model, data),
            }
            _print(name, count, _measure(sides))


def _measure(sides: dict[str, Callable[[], Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return the wall time and processor time of each turn of each side; the first turns only warm up."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            started, used = time.perf_counter(), time.process_time()
            sides[name]()
            if number:
                turns[name].append((time.perf_counter() - started, time.process_time() - used))
    return turns


def _print(name: str, rows: int, turns: dict[str, list[tuple[float, float]]]) -> None:
    rates = {side: statistics.median(rows / clock for clock, _ in taken) for side, taken in turns.items()}
    pairs = list(zip(turns["predict"], turns["evaluate"], strict=True))
    clock, processor = (
        statistics.median(other[kind] / mine[kind] for mine, other in pairs) for kind in (0, 1)
    )
    print(
        f"prediction  {name:<6} predict {rates['predict']:8.1f} rows/s   evaluate {rates['evaluate']:8.1f} rows/s   "
        f"{clock:.2f} of evaluate's ({processor:.2f} by processor seconds), at least {LIMIT}",
        flush=True,
    )


def _write_rows(path: Path, count: int) -> Path:
    rng = random.Random(0)
    rows = [
        {
            "image": f"{number % _IMAGES}.png",
            "age": rng.randint(18, 80),
            "city": rng.choice(["Oslo", "Rome", "Lima"]),
            "label": rng.choice(["a", "b"]),
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _make_job(folder: Path, source: dict[str, Any]) -> Any:
    import numpy as np
    from PIL import Image

    from rayfuse.spec.job import Job

    rng = np.random.default_rng(0)
    for number in range(_IMAGES):
        pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Job(
        name="prediction",
        data={"train": str(_write_rows(folder / "train.jsonl", 200)), "validation": {"fraction": 0.2}},
        inputs={"source": {**source, "column": "image"} if source["type"] == "image" else source},
        tasks={"answer": {"type": "classification", "column": "label"}},
        output={"storage": str(folder / "runs")},
    )


if __name__ == "__main__":
    run()

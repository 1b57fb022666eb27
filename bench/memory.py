"""Peak memory of the driver and of a training worker by the number of rows, each in a new process.

The driver ingests, fits and validates rows of text and table columns through Ray, as `rayfuse train` does; the worker
builds batches of them. The cache of decoded rows (compute.sample_cache) has its own limit, here 0.

python bench/memory.py FORMAT ROWS [ROWS…]      jsonl, csv or parquet
"""

import csv
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000, 1_000_000)
FORMATS = ("jsonl", "csv", "parquet")
STEPS = 300
BATCH = 64
LIMIT = 0.05
_WORDS = [
    "bright",
    "delayed",
    "quiet",
    "blue",
    "package",
    "broken",
    "again",
    "never",
    "works",
    "fine",
    "battery",
    "screen",
    "arrived",
    "late",
    "thanks",
]


def run() -> None:
    """Print the peaks for every format and size, and the ratio of the largest to the smallest."""
    for kind in FORMATS:
        measure(kind, SIZES)


def measure(kind: str, sizes: tuple[int, ...]) -> None:
    """Print the peaks of one format."""
    peaks: dict[str, list[float]] = {"driver": [], "worker": []}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="rayfuse-memory-") as folder:
            run_process(__file__, "write", kind, rows, folder)
            found = run_process(__file__, "drive", kind, rows, folder)
        for name, values in peaks.items():
            values.append(found[name])
        print(
            f"memory      {kind:<8} {rows:>9,} rows   driver {found['driver']:6.1f} MB   worker {found['worker']:6.1f} MB   "
            f"loaded in {found['seconds']:.0f} s",
            flush=True,
        )
    for name, values in peaks.items():
        ratio = max(values) / min(values)
        print(f"memory      {kind:<8} {name}: largest / smallest {ratio:.3f}   at most {1 + LIMIT}")


def run_process(script: str, step: str, *arguments: Any) -> dict[str, Any]:
    """Run a step of a bench in a process of its own, and return what it prints as JSON."""
    command = [sys.executable, script, step, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_megabytes() -> float:
    """Return the peak memory of this process in MB; `ru_maxrss` would include that of its parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024 / 1e6


def _rows(count: int) -> Iterator[dict[str, Any]]:
    import random

    chance = random.Random(0)
    for number in range(count):
        text = " ".join(chance.choices(_WORDS, k=chance.randint(2, 30)))
        yield {
            "text": f"{number} {text}",
            "age": chance.randint(18, 90),
            "price": round(chance.lognormvariate(3, 1), 2),
            "city": f"city {chance.randint(0, 200)}",
            "label": chance.choice(["good", "bad", "unsure"]),
        }


def write(kind: str, count: str, folder: str) -> dict[str, Any]:
    """Write the rows as one file."""
    path, rows = Path(folder, f"rows.{kind}"), _rows(int(count))
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="") as file:
            if kind == "csv":
                table = csv.DictWriter(file, ["text", "age", "price", "city", "label"])
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return {}


def drive(kind: str, count: str, folder: str) -> dict[str, Any]:
    """Load the rows on a local Ray, as a driver does; then build batches of them in a worker."""
    found = load_and_work(__file__, _job(Path(folder, f"rows.{kind}"), folder), folder)
    assert found["rows"] == int(count)
    return {"driver": found["driver"], "worker": found["worker"]["peak"], "seconds": found["seconds"]}


def load_and_work(script: str, job: Any, folder: str) -> dict[str, Any]:
    """Load the rows of a job as a driver does, then run the step `work` of a bench on them."""
    from rayfuse.training import launch

    started = time.perf_counter()
    job, dataset = launch.load_rows(job, lambda text: None)
    seconds = time.perf_counter() - started
    driver = peak_megabytes()
    pickled = Path(folder, "dataset.pickle")
    pickled.write_bytes(pickle.dumps((job, dataset.splits["train"])))
    rows = sum(map(len, dataset.splits.values()))
    return {
        "driver": driver,
        "worker": run_process(script, "work", pickled),
        "seconds": seconds,
        "rows": rows,
    }


def _job(rows: Path, folder: str) -> Any:
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    content = {
        "kind": "job",
        "name": "memory",
        "data": {"train": str(rows)},
        "inputs": {
            "text": {"type": "text", "encoder": {"type": "conv"}},
            "person": {"type": "tabular", "columns": ["age", "price", "city"], "encoder": {"type": "mlp"}},
        },
        "fusion": {"type": "concat"},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "train": {"batch_size": BATCH, "group_by_length": True},
        "compute": {"sample_cache": 0},
        "output": {"storage": f"{folder}/runs"},
    }
    return validate_spec(content, Job, "job")


def work(path: str) -> dict[str, Any]:
    """Build batches as a training worker does, over several epochs if there are few rows."""
    from rayfuse.data.loader import BatchLoader
    from rayfuse.data.sampler import BatchSampler, SampleCache
    from rayfuse.data.samples import Preprocessor

    job, rows = pickle.loads(Path(path).read_bytes())
    maker = Preprocessor(job.inputs, job.tasks)
    plan = BatchSampler.from_job(rows, job)
    loader = BatchLoader(SampleCache(rows, maker, job.compute.sample_cache), plan, job)
    done = epoch = 0
    while done < STEPS:
        for _ in loader.iter_epoch(epoch):
            done += 1
            if done == STEPS:
                break
        epoch += 1
    return {"peak": peak_megabytes()}


_PROCESSES: dict[str, Callable[..., dict[str, Any]]] = {"write": write, "drive": drive, "work": work}


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    if step in _PROCESSES:
        print(json.dumps(_PROCESSES[step](*arguments)))
    else:
        measure(step, tuple(map(int, arguments)))

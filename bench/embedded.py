"""Images inside the rows of a parquet file: memory, disk and rate, compared with the same images as files.

The driver ingests and validates the rows through Ray, as `rayfuse train` does; then a worker builds batches for an
epoch, and the files of the cache are added up while it does. Each measurement is a process of its own.

python bench/embedded.py [ROWS…]      default: 20000 200000, of 50 kB each; compute.disk_cache is 500 MB
"""

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory import load_and_work, peak_megabytes, run_process

SIZES = (20_000, 200_000)
DISK_CACHE = 500_000_000
_SIDE, _BATCH, _ROW_GROUP, _DISTINCT = 190, 64, 500, 200
_STEPS = 150


def run(sizes: tuple[int, ...] = SIZES) -> None:
    """Print peaks, disk and rate for each number of rows, and the ratios."""
    peaks: dict[str, list[float]] = {"driver": [], "worker": []}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="rayfuse-embedded-") as folder:
            _require_space(folder, rows)
            for kind in ("parquet", "jsonl") if rows == sizes[0] else ("parquet",):
                _measure(kind, rows, folder, peaks)
    for name, values in peaks.items():
        print(f"embedded    {name}: largest / smallest {max(values) / min(values):.3f}   at most 1.05")


def _measure(kind: str, rows: int, folder: str, peaks: dict[str, list[float]]) -> None:
    size = run_process(__file__, "write", kind, rows, folder)["bytes"]
    found = run_process(__file__, "drive", kind, folder)
    worker = found["worker"]
    if kind == "parquet":
        peaks["driver"].append(found["driver"])
        peaks["worker"].append(worker["peak"])
    print(
        f"embedded    {kind:<8} {rows:>9,} rows, {size / 1e9:5.2f} GB   driver {found['driver']:6.1f} MB   "
        f"worker {worker['peak']:6.1f} MB   disk cache {worker['disk'] / 1e6:5.0f} MB   "
        f"{worker['rate']:6.1f} rows/s   loaded in {found['seconds']:.0f} s",
        flush=True,
    )


def _require_space(folder: str, rows: int) -> None:
    needed, free = rows * 110_000, shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"error: {rows} rows need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")


def _pictures() -> list[bytes]:
    """Return distinct JPEGs of noise, of about 50 kB each; the same ones are used over and over."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    contents = []
    for _ in range(_DISTINCT):
        target = io.BytesIO()
        pixels = rng.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target, "JPEG", quality=97)
        contents.append(target.getvalue())
    return contents


def _rows(count: int) -> Iterator[tuple[int, bytes]]:
    images = _pictures()
    for number in range(count):  # bytes after the end of a JPEG make each one distinct
        yield number, images[number % _DISTINCT] + number.to_bytes(8, "big")


def write(kind: str, count: str, folder: str) -> dict[str, Any]:
    """Write the rows as one parquet file, or as jsonl with a file per image."""
    total = 0
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        with pq.ParquetWriter(
            Path(folder, "rows.parquet"), schema, use_dictionary=False, compression="none"
        ) as file:
            batch: list[dict[str, Any]] = []
            for number, content in _rows(int(count)):
                batch.append({"image": content, "label": number % 3})
                total += len(content)
                if len(batch) == _ROW_GROUP or number == int(count) - 1:
                    file.write_table(pa.Table.from_pylist(batch, schema))
                    batch = []
        return {"bytes": total}
    Path(folder, "images").mkdir()
    with Path(folder, "rows.jsonl").open("w") as lines:
        for number, content in _rows(int(count)):
            Path(folder, "images", f"{number}.jpg").write_bytes(content)
            lines.write(json.dumps({"image": f"images/{number}.jpg", "label": number % 3}) + "\n")
            total += len(content)
    return {"bytes": total}


def drive(kind: str, folder: str) -> dict[str, Any]:
    """Load the rows on a local Ray, as a driver does."""
    from rayfuse.spec.job import Job

    content: dict[str, Any] = {
        "name": "embedded",
        "data": {"train": f"{folder}/rows.{kind}"},
        "inputs": {"image": {"type": "image", "size": 64, "encoder": {"type": "conv"}}},
        "fusion": {"type": "concat"},
        "tasks": {"label": {"type": "classification"}},
        "train": {"batch_size": _BATCH},
        "compute": {"sample_cache": 0, "disk_cache": DISK_CACHE},
        "output": {"storage": f"{folder}/runs"},
    }
    return load_and_work(__file__, Job(**content), folder)


def work(path: str) -> dict[str, Any]:
    """Build batches as a training worker does, and measure the disk that the cache takes."""
    import pickle

    from rayfuse.data.loader import BatchLoader
    from rayfuse.data.sampler import BatchSampler, SampleCache
    from rayfuse.data.samples import Preprocessor

    job, rows = pickle.loads(Path(path).read_bytes())
    cache = SampleCache(rows, Preprocessor(job.inputs, job.tasks), job.compute.sample_cache)
    loader = BatchLoader(cache, BatchSampler.from_job(rows, job), job)
    steps, disk, started = 0, 0, time.perf_counter()
    for _ in loader.iter_epoch(0):
        steps += 1
        if steps % 10 == 0:
            disk = max(disk, _used_bytes(rows.store.block_cache.folder))
        if steps == _STEPS:
            break
    seconds = time.perf_counter() - started
    return {"peak": peak_megabytes(), "disk": disk, "rate": steps * _BATCH / seconds}


def _used_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.arrow") if file.exists())


_PROCESSES: dict[str, Callable[..., dict[str, Any]]] = {"write": write, "drive": drive, "work": work}


if __name__ == "__main__":
    step, *arguments = sys.argv[1:] or [""]
    if step in _PROCESSES:
        print(json.dumps(_PROCESSES[step](*arguments)))
    else:
        run(tuple(map(int, sys.argv[1:])) or SIZES)

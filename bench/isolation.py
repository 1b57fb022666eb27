"""Requests per second of an endpoint that decodes files in processes of their own, compared with one that does not.

Both serve one model of images over HTTP in this process, without Ray, to clients in eight threads. The sides alternate, so
that other load affects both. Also prints the memory of the processes.

python bench/isolation.py     ROUNDS is the number of turns of each side
"""

import base64
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("ROUNDS", "5"))
CLIENTS = 8
CASES = {"32 × 32 PNG": ((32, 32), "PNG", 160), "640 × 480 JPEG": ((640, 480), "JPEG", 160), "12-megapixel JPEG": ((4000, 3000), "JPEG", 16)}  # fmt: skip
"""Size, format and requests of a turn."""


def run() -> None:
    """Print the requests per second of both, their ratio, and the memory of the processes."""
    sys.path.append(str(ROOT / "tests"))
    from endpoints import serve_in_thread
    from tiny_jobs import make_model_folder

    from rayfuse.data.samples import Sample
    from rayfuse.model.predictor import Predictor

    class InReplica(Predictor):
        """Decodes in the threads of the replica."""

        def preprocess(self, values: Mapping[str, Any], decode_file: Any = None) -> Sample:
            return super().preprocess(values)

    with tempfile.TemporaryDirectory(prefix="rayfuse-isolation-") as temporary, ExitStack() as stack:
        folder = make_model_folder(Path(temporary), steps=0, job=_make_job(Path(temporary)))
        urls = {
            side: stack.enter_context(serve_in_thread(kind(folder), "/bench"))
            for side, kind in (("processes", Predictor), ("replica", InReplica))
        }
        for name, (size, image_format, count) in CASES.items():
            _print(name, _measure(urls, _encode(size, image_format), count))
            if count > CLIENTS * 2:  # forks end after an image of 12 megapixels
                print(f"isolation   {name:<18} {', '.join(_private_memory())} of their own", flush=True)


def _measure(urls: Mapping[str, str], image: bytes, count: int) -> dict[str, list[tuple[float, float]]]:
    """Return the requests per second, and per second of processor time, of each turn of each side.

    The first turns only warm up.
    """
    import httpx

    body = {"inputs": {"image": {"b64": base64.b64encode(image).decode()}}}
    limits = httpx.Limits(keepalive_expiry=1)  # before the server closes connections
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in urls}
    with (
        httpx.Client(trust_env=False, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        for number in range(ROUNDS + 1):
            for side in list(urls) if number % 2 else list(reversed(urls)):
                started, used = time.perf_counter(), _processor_seconds(os.getpid())
                responses = pool.map(
                    lambda url: client.post(f"{url}/predict", json=body), [urls[side]] * count
                )
                for response in responses:
                    response.raise_for_status()
                if number:
                    taken = time.perf_counter() - started, _processor_seconds(os.getpid()) - used
                    rates[side].append((count / taken[0], count / taken[1]))
    return rates


def _print(name: str, rates: Mapping[str, list[tuple[float, float]]]) -> None:
    pairs = list(zip(rates["processes"], rates["replica"], strict=True))
    clock, processor = (
        statistics.median(mine[kind] / other[kind] for mine, other in pairs) for kind in (0, 1)
    )
    medians = {side: statistics.median(rate for rate, _ in of) for side, of in rates.items()}
    print(
        f"isolation   {name:<18} in processes {medians['processes']:7.1f} requests/s   in the replica "
        f"{medians['replica']:7.1f}   ratio {clock:.2f} ({processor:.2f} by processor time)",
        flush=True,
    )


def _children(pid: int) -> list[int]:
    with suppress(OSError):  # it has ended in this moment
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process and its descendants, also of those that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    except OSError:  # it has ended in this moment
        return 0.0
    own = sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(_processor_seconds, _children(pid)))


def _private_memory() -> list[str]:
    """Return the memory of the parent of the processes, and of its forks."""

    def megabytes(pid: int) -> float:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000

    parent = next(pid for pid in _children(os.getpid()) if _children(pid))
    return [
        f"parent {megabytes(parent):.0f} MB",
        *(f"fork {megabytes(pid):.0f} MB" for pid in _children(parent)),
    ]


def _encode(size: tuple[int, int], image_format: str) -> bytes:
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size).save(file, image_format)
    return file.getvalue()


def _make_job(folder: Path) -> Any:
    from tiny_jobs import write_rows

    from rayfuse.spec.job import Job

    rows = []
    for number in range(40):
        (folder / f"{number}.png").write_bytes(_encode((32, 32), "PNG"))
        rows.append({"image": f"{number}.png", "label": "ab"[number % 2]})
    write_rows(folder / "train.jsonl", rows)
    return Job(
        name="isolation",
        data={"train": str(folder / "train.jsonl"), "validation": {"fraction": 0.2}},
        inputs={"image": {"type": "image", "size": 32}},
        tasks={"answer": {"type": "classification", "column": "label"}},
        output={"storage": str(folder / "runs")},
    )


if __name__ == "__main__":
    run()

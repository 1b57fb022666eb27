"""Hostile requests: mutated bodies for an endpoint of a model with every kind of input.

    python bench/hostile_requests.py --bodies 10000 --seed 0

Each body is a valid request, as JSON or as a form, with some nodes, bytes of files or bytes of the whole body changed.
The application of an endpoint runs in this process, as a replica runs it. Prints the responses by status, the memory after
as a ratio to that after the first tenth of the bodies, and the slowest response; exits with 1 if a body gets a 5xx other
than 503 and 504, or an answer that is no JSON.
"""

import argparse
import asyncio
import base64
import copy
import gc
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

ALLOWED = (503, 504)
MEMORY_LIMIT = 1.1
WARM_UP_FRACTION = 0.1
SHOWN = 5
BOUNDARY = "Form-boundary"
Node = tuple[str | int, ...]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e308, -1e-320, 2**63, -(2**64), 10**400, float("nan"), float("inf"), "", " ", "\0", "a" * 5000,
    "\ud800", "\u202eabc", "NaN", "1e999", "2026-13-45", [], {}, [[]], [None], [[None]] * 3, [{}], {"": 1}, {"b64": ""},
    {"b64": "!"}, {"b64": "aGk="}, {"b64": 5}, {"b64": None}, {"url": "file:///etc/passwd"}, {"url": "http://127.0.0.1:1/"},
    {"url": 5}, {"b64": "aGk=", "url": "http://x/"}, "data:image/png;base64,aGk=", {"id": None}, {"id": 1, "time": "never"},
    {"__proto__": 1}, ["a"] * 2000, [[1, 2]] * 2000, {str(number): number for number in range(500)},
)  # fmt: skip
"""JSON values for any node."""
MEDIA_TYPES = (
    "application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data", "", "application/x-ndjson",
    f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data; boundary=", "multipart/mixed; boundary=x", "\x00",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A body with its media type."""

    body: bytes
    media_type: str
    seed: str
    """Makes the same request again: `mutate(row, seed)`."""


def mutate(row: dict[str, Any], seed: str) -> Request:
    """Return a mutated request for a valid row in JSON."""
    rng = random.Random(seed)
    kind = rng.choice(["json", "json", "json", "file", "file", "form", "form", "bytes"])
    if kind == "file":
        content = {"inputs": _with_damaged_file(copy.deepcopy(row), rng)}
        return Request(_encode(content), "application/json", seed)
    if kind == "form":
        return Request(*_form(row, rng), seed)
    content = {"inputs": copy.deepcopy(row), "explain": rng.random() < 0.1}
    if kind == "json":
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            _mutate_node(content, rng)
        return Request(_encode(content), "application/json", seed)
    return Request(_damage(_encode(content), rng), rng.choice(MEDIA_TYPES), seed)


def _encode(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _nodes(content: Any, before: Node = ()) -> Iterator[Node]:
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in pairs:
        yield (*before, key)
        yield from _nodes(value, (*before, key))


def _mutate_node(content: Any, rng: random.Random) -> None:
    """Replace, remove, repeat or nest a node, or add a key next to it."""
    nodes = list(_nodes(content))
    if not nodes:
        return
    *above, last = rng.choice(nodes)
    parent = content
    for key in above:
        parent = parent[key]
    action = rng.choice(["replace", "replace", "replace", "remove", "repeat", "nest", "add"])
    if action == "replace":
        parent[last] = copy.deepcopy(rng.choice(VALUES))
    elif action == "remove":
        del parent[last]
    elif action == "repeat":
        parent[last] = [copy.deepcopy(parent[last])] * rng.choice([0, 2, 50])
    elif action == "nest":
        for _ in range(rng.choice([1, 3, 200])):
            parent[last] = [parent[last]] if rng.random() < 0.5 else {"x": parent[last]}
    elif isinstance(parent, dict):
        parent[rng.choice(["", "x", "b64", "url", "inputs", "é", "\0"])] = copy.deepcopy(rng.choice(VALUES))


def _with_damaged_file(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Change bytes of a file, or give an input the file of another one."""
    files = [node for node in _nodes(row) if node[-1] == "b64"]
    *above, last = rng.choice(files)
    parent: Any = row
    for key in above:
        parent = parent[key]
    content = base64.b64decode(parent[last])
    if rng.random() < 0.1:
        *elsewhere, key = rng.choice(files)
        other: Any = row
        for each in elsewhere:
            other = other[each]
        content = base64.b64decode(other[key])
    parent[last] = base64.b64encode(_damage(content, rng)).decode()
    return row


def _damage(content: bytes, rng: random.Random) -> bytes:
    """Cut content off, or change, repeat or insert bytes of it."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(data) + 1)
        action = rng.choice(["cut", "flip", "flip", "flip", "insert", "repeat", "remove"])
        if action == "cut":
            del data[at:]
        elif action == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif action == "insert":
            data[at:at] = rng.randbytes(rng.choice([1, 4, 300]))
        elif action == "repeat":
            data[at:at] = data[at : at + rng.choice([1, 16, 1000])]
        else:
            del data[at : at + rng.choice([1, 4, 100])]
    return bytes(data)


def _form(row: dict[str, Any], rng: random.Random) -> tuple[bytes, str]:
    """Return a form, whose parts may be repeated, misnamed or damaged."""
    parts = []
    for name, value in row.items():
        for each in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            is_file = isinstance(each, dict) and "b64" in each
            content = base64.b64decode(each["b64"]) if is_file else _encode(each)
            if rng.random() < 0.25:
                content = _damage(content, rng)
            named = rng.choice([name, name, name, name, name, "x", "", "é", name + "\0"])
            filename = f'; filename="{rng.choice(["a", "a.json", "../../a", "x" * 400])}"' if is_file else ""
            media_type = rng.choice(["application/json", "text/plain", "application/octet-stream", "x", ""])
            head = f'Content-Disposition: form-data; name="{named}"{filename}\r\nContent-Type: {media_type}\r\n\r\n'
            parts += [head.encode() + content] * rng.choice([1, 1, 1, 1, 0, 3])
    rng.shuffle(parts)
    body = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    body += b"--" + BOUNDARY.encode() + b"--\r\n"
    return (_damage(body, rng) if rng.random() < 0.2 else body), f"multipart/form-data; boundary={BOUNDARY}"


@contextmanager
def loaded_model() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the predictor of a model with every kind of input, and a valid row."""
    from kinds_of_input import make_job, make_rows
    from tiny_jobs import make_model_folder

    from rayfuse.model.predictor import Predictor

    def read(name: str) -> dict[str, str]:
        return {"b64": base64.b64encode((folder / name).read_bytes()).decode()}

    with tempfile.TemporaryDirectory(prefix="rayfuse-requests-") as temporary:
        folder = Path(temporary)
        make_model_folder(folder, steps=0, job=make_job(folder, make_rows(folder)))
        row = {
            "clip": read("dark.mp4"),
            "sensor": [[1, None, 2], [0.5, 1, 2]],
            "person": {"age": 30, "city": "Rome"},
            "history": [{"id": 1, "time": "2026-01-01"}, {"id": "2", "time": "2026-01-02T10:00:00Z"}],
            "images": [read("red.png"), read("green.png")],
            "text": "dark or bright?",
        }
        yield Predictor(folder / "model"), row


def problem_of(response: httpx.Response) -> str:
    """Return why a response is wrong; empty if it is right."""
    status = response.status_code
    if status >= 500 and status not in ALLOWED:
        return f"{status}: {response.text[:300]}"
    try:
        content = response.json()
    except ValueError:
        return f"{status}, no JSON: {response.text[:300]}"
    if status == 200:
        return "" if "outputs" in content or "instances" in content else f"no outputs: {str(content)[:300]}"
    return (
        ""
        if content.get("status") == status and content.get("detail")
        else f"no problem+json: {str(content)[:300]}"
    )


async def send_all(predictor: Any, row: dict[str, Any], seeds: list[str]) -> int:
    """Send a mutated body per seed, print what came back, and return the number of wrong responses."""
    from rayfuse.serving.app import build_app
    from rayfuse.serving.engine import InferenceEngine
    from rayfuse.serving.settings import Settings

    app = build_app(InferenceEngine(predictor, Settings(batch_wait_timeout=0.0)))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 50000))
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    slowest, before = 0.0, 0
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        for number, seed in enumerate(seeds):
            request = mutate(row, seed)
            started = time.perf_counter()
            headers = {"Content-Type": request.media_type.replace("\0", "x")}
            response = await client.post("/predict", content=request.body, headers=headers)
            slowest = max(slowest, time.perf_counter() - started)
            statuses[response.status_code] += 1
            wrong += [f"{seed}: {found}"] if (found := problem_of(response)) else []
            if number == int(len(seeds) * WARM_UP_FRACTION):
                before = _memory()
    for found in wrong[:SHOWN]:
        print(f"requests   {found}", file=sys.stderr)
    ratio = _memory() / max(1, before)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(
        f"requests    {len(seeds)} mutated bodies: {counts}; {len(wrong)} wrong; slowest {slowest:.2f} s; memory {ratio:.3f} "
        f"of that after {WARM_UP_FRACTION:.0%} of them   at most {MEMORY_LIMIT}"
    )
    return len(wrong)


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def run(bodies: int = 10_000, seed: int = 0) -> int:
    """Send mutated bodies; return the number of wrong responses."""
    with loaded_model() as (predictor, row):
        return asyncio.run(send_all(predictor, row, [f"{seed}/{number}" for number in range(bodies)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(1 if run(options.bodies, options.seed) else 0)

"""Requests that an endpoint answers while its processes are killed: kill -9 of a replica, the proxy and the controller.

20 requests per second, each on its own connection and without a second try, against two replicas of a small model.

python bench/serving_faults.py
"""

import base64
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
REQUESTS_PER_SECOND, SECONDS, KILL_AFTER = 20, 20.0, 3.0
PROCESSES = {"replica": "ServeReplica", "proxy": "ProxyActor", "controller": "ServeController"}
LIMITS = {"replica": "at least 99.5%", "proxy": "back in at most 5 s", "controller": "100%"}


@dataclass(frozen=True)
class Answer:
    """The result of one request."""

    sent: float
    """Seconds since the first request."""
    done: float
    """Seconds since the first request when it was answered or had failed."""
    ok: bool
    """True for status 200."""


def run() -> None:
    """Print the fraction of answered requests and the longest time without an answer, for each killed process."""
    sys.path.append(str(ROOT / "tests"))
    from endpoints import make_served_model
    from tiny_jobs import write_image

    from rayfuse.cluster import local
    from rayfuse.registry.download import ModelSource
    from rayfuse.serving import deploy
    from rayfuse.serving.dashboard import Dashboard
    from rayfuse.spec.load import validate_spec
    from rayfuse.spec.service import Service

    with tempfile.TemporaryDirectory(prefix="rayfuse-faults-") as temporary:
        folder = Path(temporary)
        model = make_served_model(folder / "model")
        image = base64.b64encode(write_image(folder / "a.png").read_bytes()).decode()
        row = {"image": {"b64": image}, "text": "which colour is it?"}
        cluster = local.start(folder / "state", num_cpus=4)
        try:
            content = {"kind": "service", "name": "tiny", "model": "/m", "port": local.free_ports(1)[0]}
            content["replicas"] = {"min": 2, "max": 2, "num_cpus": 1}
            service = validate_spec(content, Service, "bench")
            dashboard = Dashboard(cluster.dashboard_url, cluster.token)
            endpoint = deploy.deploy(service, ModelSource(str(model), name="tiny", version=1), dashboard)
            for name, actor in PROCESSES.items():
                processes = [one for one in local.processes(cluster) if actor in " ".join(one.cmdline())]
                _print(name, _measure(endpoint.predict_url, row, processes[0]))
                time.sleep(20)  # for the replacement
        finally:
            local.stop(folder / "state")


def _measure(url: str, row: Any, process: Any) -> list[Answer]:
    """Send requests at a fixed rate, and kill a process meanwhile."""
    started = time.monotonic()

    def send(at: float) -> Answer:
        time.sleep(max(0.0, started + at - time.monotonic()))
        try:
            status = httpx.post(url, json={"inputs": row}, timeout=60, trust_env=False).status_code
        except httpx.TransportError:
            status = 0
        return Answer(at, time.monotonic() - started, status == 200)

    with ThreadPoolExecutor(64) as pool:
        sent = [
            pool.submit(send, number / REQUESTS_PER_SECOND)
            for number in range(int(SECONDS * REQUESTS_PER_SECOND))
        ]
        time.sleep(max(0.0, started + KILL_AFTER - time.monotonic()))
        process.kill()
        return [each.result() for each in sent]


def _print(name: str, answers: list[Answer]) -> None:
    answered = [each for each in answers if each.ok]
    after = sorted(each.done for each in answered if each.done > KILL_AFTER)
    gap = (
        max(after_one - before for before, after_one in zip([KILL_AFTER, *after], after, strict=False))
        if after
        else SECONDS
    )
    print(
        f"faults     kill -9 of the {name} at {REQUESTS_PER_SECOND} requests/s: {len(answered)} of {len(answers)} answered "
        f"({len(answered) / len(answers):.1%}), longest time without an answer {gap:.1f} s   {LIMITS[name]}",
        flush=True,
    )


if __name__ == "__main__":
    run()

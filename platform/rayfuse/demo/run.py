"""The main job on this machine, end to end: rows → training → gate → endpoint → answers over HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from rayfuse.cluster import local
from rayfuse.demo.make import make_data, make_models
from rayfuse.errors import ResourceError
from rayfuse.pipeline import train_and_register
from rayfuse.registry.deciding import promote
from rayfuse.registry.fetching import fetch, pin
from rayfuse.registry.tracking import connect, database_path, tracking_uri
from rayfuse.serve import deploy
from rayfuse.serve.dashboard import Dashboard
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec
from rayfuse.spec.service import Service
from rayfuse.train.progress import ProgressLine

Say = Callable[[str], None]

_MINIMUM = {"answer/accuracy": 0.95}


@dataclass
class Addresses:
    """Where the parts of a running demo answer."""

    endpoint: str
    docs: str
    dashboard: str
    mlflow: str
    token_file: str
    """Holds the token that Ray's dashboard asks for."""


@dataclass
class Demo:
    """What the demo made and found; `seconds` by step."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    by_inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    version: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, say: Say) -> Iterator[None]:
        """Time a step and announce it."""
        say(f"── {name}")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def prepare(root: Path, say: Say) -> None:
    """Make the demo's rows in `root`/data and its text model in `root`/models, unless they are there."""
    make_data(root / "data", progress=_Progress(say))
    make_models(root / "models")


def run(
    root: Path, overrides: tuple[str, ...], say: Say, keep: Callable[[Addresses], None] | None = None
) -> Demo:
    """Run the demo with the specs in `root`/jobs and `root`/serve.

    Everything that it starts is stopped at the end, after `keep` (if given) has returned.
    """
    demo = Demo()
    job_file = root / "jobs" / "digit_arithmetic.yaml"
    service_file = root / "serve" / "digit_arithmetic.yaml"
    with ExitStack() as cleanup:
        cleanup.enter_context(_stoppable())
        with demo.step("make rows and the text model", say):
            prepare(root, say)
        job = load_spec(job_file, Job, overrides)
        service = load_spec(service_file, Service)
        with demo.step("start Ray", say):
            state = Path(job.output.storage) / ".demo"
            cluster = _start_ray(state, job, cleanup)
        with demo.step("train with Ray Train, DeepSpeed and LoRA, and register", say):
            trained = train_and_register(job, lambda _: False, say, ProgressLine(say), str(job_file))
            _leave_ray()
        demo.metrics, demo.by_inputs, demo.version = (
            trained["metrics"],
            trained["by_inputs"],
            trained["version"],
        )
        uri = tracking_uri(job.output.tracking, job.output.storage)
        with demo.step("promote through the gates", say):
            decision = promote(connect(uri), job.registered_name, minimum=_MINIMUM)
            say(decision.text())
        with demo.step("serve with Ray Serve", say):
            dashboard = Dashboard(cluster.dashboard, cluster.token)
            endpoint = _serve(service, uri, dashboard, say)
        with demo.step("ask over HTTP", say):
            row = _row(Path(job.data.test or job.data.train))
            demo.answers = [_ask(endpoint.predict, row), _ask(endpoint.predict, {**row, "audio": None})]
            for answer in demo.answers:
                say(_sentence(row, answer))
        if keep is not None:
            mlflow = _start_mlflow(uri, cleanup)
            keep(
                Addresses(
                    endpoint.url, endpoint.docs, cluster.dashboard, mlflow, str(local.state_file(state))
                )
            )
        with demo.step("stop everything", say):
            cleanup.close()
    return demo


def _start_ray(state: Path, job: Job, cleanup: ExitStack) -> local.LocalCluster:
    """A cluster of the demo's own, in the environment of this process."""
    local.stop(state)
    cpus = max(os.cpu_count() or 1, int(job.compute.most * job.compute.cpus_per_worker))
    cluster = local.start(state, cpus=cpus)
    cleanup.callback(local.stop, state)
    before = {name: os.environ.get(name) for name in cluster.environment}
    os.environ.update(cluster.environment)
    cleanup.callback(_restore, before)
    return cluster


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _leave_ray() -> None:
    """Hand the workers' memory back before serving."""
    import ray

    ray.shutdown()


def _serve(service: Service, uri: str, dashboard: Dashboard, say: Say) -> deploy.Endpoint:
    source = pin(service.model, service.tracking or uri)
    folder = fetch(source.model, source.tracking).folder
    return deploy.deploy(service, replace(source, model=str(folder)), dashboard, say)


def _row(rows: Path) -> dict[str, Any]:
    """The first test row that asks for a sum, which nobody can tell from one digit; its files as paths."""
    with rows.open(encoding="utf-8") as file:
        row: dict[str, Any] = next(row for row in map(json.loads, file) if row["op"] == "sum")
    return {**row, "image": rows.parent / row["image"], "audio": rows.parent / row["audio"]}


def _ask(url: str, row: dict[str, Any]) -> dict[str, Any]:
    """POST a row's picture, clip and question as multipart/form-data."""
    files = {
        "image": (row["image"].name, row["image"].read_bytes(), "image/png"),
        "audio": (row["audio"].name, row["audio"].read_bytes(), "audio/wav") if row["audio"] else None,
    }
    sent = {name: part for name, part in files.items() if part}
    response = httpx.post(url, data={"text": row["text"]}, files=sent, timeout=60, trust_env=False)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def _sentence(row: dict[str, Any], answer: dict[str, Any]) -> str:
    found = answer["outputs"]["answer"]
    score = found["scores"][str(found["label"])]
    return (
        f"“{row['text']}” about a written {row['image_digit']} and a spoken {row['audio_digit']}: "
        f"{found['label']} ({score:.0%}), from {', '.join(answer['inputs_used'])}; right is {row['label']}"
    )


def _start_mlflow(uri: str, cleanup: ExitStack) -> str:
    """MLflow's pages over the demo's database, until the demo ends."""
    database = database_path(uri)
    if database is None:
        return uri
    [port] = local.free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--artifacts-destination", str(database.parent / "mlartifacts")]
    log = (database.parent / "mlflow-server.log").open("wb")
    cleanup.callback(log.close)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes fewer
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    cleanup.callback(_end_group, process)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).is_success:
                return url
        except httpx.HTTPError:
            time.sleep(0.3)
    raise ResourceError(f"MLflow's server did not start; its log: {log.name}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a server and the workers that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does: with everything stopped that it started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """Says what is being made, when it starts and when it is done."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def __call__(self, what: str, done: int, total: int) -> None:
        if done == total:
            self._say(f"{what}: {total}")

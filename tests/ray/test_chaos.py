"""A seeded schedule of faults over training and over serving, after which the results are those of undisturbed runs.

RAYFUSE_FAULTS is the number of faults of each test, by default 50, and RAYFUSE_FAULT_SEED repeats a schedule, which is
printed when a test fails.
"""

import contextlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tiny_jobs
from mlflow_server import Server
from nodes import Nodes
from small_disk import SmallDisk
from training_runs import RAYFUSE
from waiting import wait_for

from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.registry.download import ModelSource
from rayfuse.serving import deploy
from rayfuse.serving.dashboard import Dashboard
from rayfuse.serving.serve_config import EndpointStatus
from rayfuse.spec.load import validate_spec
from rayfuse.spec.service import Service

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAULTS = int(os.environ.get("RAYFUSE_FAULTS", "50"))
TESTS = Path(__file__).parents[1]
STEPS, EVERY = 10, 4
"""Steps of an epoch, and between checkpoints."""
MIN_PROGRESS, MAX_PROGRESS = 3, 7
"""Limits of the steps that are trained between two faults."""
STEPS_PER_FAULT = 15
"""Mean steps from a fault to the next: some take ten seconds, during which training continues."""
MAX_LOST = 2 * EVERY + 10
"""Steps that a fault may cost: two intervals, as one checkpoint is being written, and the steps of the last report."""
DISK_MEGABYTES = 200


def schedule_of(names: list[str], record_property: Any) -> tuple[random.Random, list[str]]:
    """Return a random generator and the faults, each kind equally often; print both."""
    seed = int(os.environ.get("RAYFUSE_FAULT_SEED", random.randrange(1 << 30)))
    rng = random.Random(seed)
    chosen = [name for _ in range(-(-FAULTS // len(names))) for name in rng.sample(names, len(names))][
        :FAULTS
    ]
    record_property("seed", seed)
    print(f"RAYFUSE_FAULT_SEED={seed} RAYFUSE_FAULTS={FAULTS}")
    print("schedule:", ", ".join(chosen))
    return rng, chosen


class Training:
    """One run of `rayfuse train`, started again by the same command whenever it fails, as a user would do."""

    def __init__(self, folder: Path, storage: Path, environment: dict[str, str], before: list[str]) -> None:
        self.folder, self.storage = folder, storage
        self.environment, self.before = environment, before
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.log = self.folder / f"{self.starts}.log"
        command = [*self.before, *RAYFUSE, "train", str(self.folder / "job.yaml"), "--json"]
        with self.log.open("wb") as log, (self.folder / "out.json").open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    def ensure_running(self) -> None:
        """Start the command again if it has failed."""
        if self.process.poll():
            self.start()

    def is_finished(self) -> bool:
        return self.process.poll() == 0

    def records(self) -> list[dict[str, Any]]:
        lines = [line for path in self.storage.glob("tiny/*/metrics.jsonl") for line in path.open()]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def step(self) -> int:
        """Return the last step of training since the last start of the workers."""
        trained = [r for r in self.records() if "first_step" in r or "train/loss" in r.get("metrics", {})]
        return trained[-1]["step"] if trained else 0

    def wait_for_steps(self, count: int) -> None:
        """Wait until more steps are trained, and start the command again if it fails; return at the end of the run."""
        first = self.step()

        def reached() -> bool:
            self.ensure_running()
            return self.is_finished() or self.step() >= first + count

        wait_for(reached, timeout=300)

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out.json").read_text().splitlines()[-1])
        return found

    def finish(self) -> dict[str, Any]:
        def ended() -> bool:
            self.ensure_running()
            return self.is_finished()

        wait_for(ended, timeout=900)
        return self.result()

    def lost_steps(self) -> list[int]:
        """Return the steps that each restart of the workers trained again."""
        lost, reached = [], 0
        for record in self.records():
            if "resuming from step" in record.get("text", ""):
                resumed = int(record["text"].partition("from step ")[2].split()[0])
                lost.append(reached - resumed)
            if "train/loss" in record.get("metrics", {}):
                reached = record["step"]
        return lost


class TrainingFaults:
    """Faults of a training run and of all that it needs; each method injects one, and repairs what a user would."""

    def __init__(self, training: Training, nodes: Nodes, disk: SmallDisk, mlflow: Server) -> None:
        self.training, self.nodes, self.disk, self.mlflow = training, nodes, disk, mlflow
        self.workers = [1, 2]

    def kill_worker(self, rng: random.Random) -> None:
        self._kill("TrainWorker", rng)

    def kill_metrics_actor(self, rng: random.Random) -> None:
        self._kill("MetricsActor", rng)

    def kill_controller(self, rng: random.Random) -> None:
        self._kill("TrainController", rng)

    def kill_node(self, rng: random.Random) -> None:
        """Kill a raylet and all processes of its node; another node replaces it."""
        lost = rng.choice(self.workers)
        self.workers.remove(lost)
        self.nodes.kill(lost)
        self.workers.append(self.nodes.add(1))

    def kill_driver(self, rng: random.Random) -> None:
        self.training.process.kill()
        self.training.process.wait()
        self.training.start()

    def hide_storage(self, rng: random.Random) -> None:
        self.disk.hide()
        time.sleep(10)
        self.disk.show()

    def fill_disk(self, rng: random.Random) -> None:
        """Fill the disk until the run has ended with the reason."""
        self.disk.fill()
        try:
            wait_for(lambda: self.training.process.poll() is not None, timeout=120)
            if not self.training.is_finished():
                assert "No space left on device" in self.training.log.read_text()
        finally:
            self.disk.make_room()

    def stop_mlflow(self, rng: random.Random) -> None:
        self.mlflow.kill()
        time.sleep(3)
        self.mlflow.start()

    def _kill(self, name: str, rng: random.Random) -> None:
        wait_for(lambda: self._processes(name) or self.training.is_finished(), timeout=120)
        if found := self._processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(found).kill()

    def _processes(self, name: str) -> list[psutil.Process]:
        self.training.ensure_running()
        found = [process for number in [0, *self.workers] for process in self.nodes.processes(number)]
        return [process for process in found if name in _command(process)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def prepare(folder: Path, storage: Path, tracking_uri: str) -> Path:
    """Write a job whose result does not depend on interruptions, with an epoch more for each fault."""
    settings = {
        "train.epochs": 3 + FAULTS * STEPS_PER_FAULT // STEPS,
        "train.batch_size": 4,
        "train.early_stopping": None,
        "train.checkpoint": {"interval": None, "every_n_steps": EVERY, "keep": {"last": 2}},
        "inputs.image.encoder": {"type": "slow_encoder:SlowMean", "options": {"seconds": 0.3}},
        "compute.workers": 2,
        "compute.max_failures": 10 * FAULTS,
        "output.storage": str(storage),
        "output.tracking_uri": tracking_uri,
    }
    folder.mkdir()
    tiny_jobs.make_rows(folder, 48, "train")
    tiny_jobs.make_rows(folder, 24, "test")
    (folder / "job.yaml").write_text(tiny_jobs.tiny_job(folder, **settings).model_dump_json())
    return folder


@pytest.fixture
def python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all processes import tests/slow_encoder.py."""
    given = [str(TESTS), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, given)))


@pytest.mark.usefixtures("python_path")
def test_training_survives_a_schedule_of_faults(tmp_path: Path, record_property: Any) -> None:
    names = [name for name in vars(TrainingFaults) if not name.startswith("_")]
    rng, schedule = schedule_of(names, record_property)
    mlflow = Server(tmp_path)
    mlflow.start()
    with contextlib.ExitStack() as stack:
        stack.callback(mlflow.kill)
        disk = stack.enter_context(contextlib.closing(SmallDisk(tmp_path / "disk", DISK_MEGABYTES)))
        nodes = Nodes(1, 1, before=disk.prefix)
        stack.callback(nodes.stop)

        def start(name: str) -> Training:
            folder = prepare(tmp_path / name, disk.path / name, mlflow.uri)
            training = Training(folder, disk.seen_from_here / name, nodes.environment, disk.prefix)
            stack.callback(training.process.kill)
            return training

        undisturbed = start("undisturbed").finish()
        training = start("disturbed")
        stack.callback(lambda: training.process.kill())
        faults = TrainingFaults(training, nodes, disk, mlflow)
        for number, name in enumerate(schedule, 1):
            training.wait_for_steps(rng.randint(MIN_PROGRESS, MAX_PROGRESS))
            assert not training.is_finished(), f"before fault {number}"
            print(f"fault {number}: {name} at step {training.step()}")
            getattr(faults, name)(rng)
        result = training.finish()
        assert result["metrics"] == pytest.approx(undisturbed["metrics"], abs=1e-6)
        assert result["validation"] == pytest.approx(undisturbed["validation"], abs=1e-6)
        assert max(training.lost_steps(), default=0) <= MAX_LOST


class ServingFaults:
    """Faults of an endpoint; each method injects one."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def kill_replica(self, rng: random.Random) -> None:
        self._kill("ServeReplica", rng)

    def kill_proxy(self, rng: random.Random) -> None:
        self._kill("ProxyActor", rng)

    def kill_serve_controller(self, rng: random.Random) -> None:
        self._kill("ServeController", rng)

    def _kill(self, name: str, rng: random.Random) -> None:
        found = wait_for(
            lambda: [p for p in local.processes(self.cluster) if name in _command(p)], timeout=300
        )
        rng.choice(found).kill()


class Client(threading.Thread):
    """Sends the same request all the time, and collects the statuses and the distinct answers."""

    def __init__(self, endpoint: EndpointStatus) -> None:
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self._stopped = threading.Event()
        self.statuses: list[int | str] = []
        """Status of each request, or the name of the error of its connection."""
        self.answers: set[str] = set()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                response = httpx.post(
                    self._endpoint.predict_url, json={"inputs": {"text": "it?"}}, trust_env=False, timeout=300
                )
            except httpx.TransportError as error:
                self.statuses.append(type(error).__name__)
                continue
            self.statuses.append(response.status_code)
            if response.status_code == 200:
                self.answers.add(json.dumps(response.json()["outputs"], sort_keys=True))

    def wait_until_steady(self) -> None:
        """Wait until ten more requests in a row were answered."""
        sent = len(self.statuses)
        wait_for(lambda: len(self.statuses) >= sent + 10 and set(self.statuses[-10:]) == {200}, timeout=120)

    def stop(self) -> None:
        self._stopped.set()
        self.join(90)


@pytest.fixture
def endpoint(ray_cluster: LocalCluster, tmp_path: Path) -> Iterator[EndpointStatus]:
    """Serve a model with two replicas."""
    job = tiny_jobs.tiny_job(tmp_path / "data")
    folder = tiny_jobs.make_model_folder(tmp_path, steps=20, job=job)
    dashboard = Dashboard(ray_cluster.dashboard_url, ray_cluster.token)
    content = {
        "kind": "service",
        "name": "chaos",
        "model": "/m",
        "port": local.free_ports(1)[0],
        "replicas": {"min": 2, "max": 2, "num_cpus": 0.5},
    }
    service = validate_spec(content, Service, "test.yaml")
    yield deploy.deploy(service, ModelSource(str(folder), name="chaos", version=1), dashboard)
    dashboard.shutdown_serve()


def test_serving_survives_a_schedule_of_faults(
    endpoint: EndpointStatus, ray_cluster: LocalCluster, record_property: Any
) -> None:
    names = [name for name in vars(ServingFaults) if not name.startswith("_")]
    rng, schedule = schedule_of(names, record_property)
    faults, client = ServingFaults(ray_cluster), Client(endpoint)
    try:
        client.wait_until_steady()
        for number, name in enumerate(schedule, 1):
            print(f"fault {number}: {name} after {len(client.statuses)} requests")
            getattr(faults, name)(rng)
            client.wait_until_steady()
    finally:
        client.stop()
    print("statuses:", {status: client.statuses.count(status) for status in set(client.statuses)})
    assert len(client.answers) == 1, "all answers are those of the undisturbed endpoint"
    assert {status for status in client.statuses if isinstance(status, int)} <= {200, 503}

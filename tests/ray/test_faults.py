"""Training recovers from faults with the same result, on a real cluster of several nodes.

Faults happen at random steps; a failed test prints the seed, and RAYFUSE_FAULT_SEED repeats it.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_jobs
import waiting
from nodes import Nodes
from s3_server import S3, Cuttable, s3_server
from small_disk import SmallDisk
from training_runs import finish, start_training, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS, ROWS, BATCH, EVERY = 8, 48, 4, 4
STEPS = 10  # of an epoch: the split leaves 40 rows to train on
TESTS = Path(__file__).parents[1]


@pytest.fixture
def rng(record_property: Any) -> random.Random:
    """Return a random generator, and print its seed."""
    seed = int(os.environ.get("RAYFUSE_FAULT_SEED", random.randrange(1 << 30)))
    record_property("seed", seed)
    print(f"RAYFUSE_FAULT_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Start a head without CPUs and two nodes of one CPU each, whose workers can import tests/slow_encoder.py."""
    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [before, str(TESTS)])))
        cluster = Nodes(1, 1)
        yield cluster
        cluster.stop()


class Training:
    """One `rayfuse train` process, observed through its folder."""

    def __init__(
        self, folder: Path, nodes: Nodes | None = None, before: Sequence[str] = (), **environment: str
    ) -> None:
        self.folder, self.before = folder, before
        self.environment = {**(nodes.environment if nodes else {}), "PYTHONPATH": _path(), **environment}
        self.start()

    def start(self) -> None:
        self.process = start_training(self.folder, before=self.before, **self.environment)

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.step() >= step, self.process)

    def step(self) -> int:
        return max((record["step"] for record in self.records()), default=0)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the journal in order, without system metrics."""
        lines = [
            line
            for journal in self.folder.glob("runs/tiny/*/metrics.jsonl")
            for line in journal.read_text().splitlines(keepends=True)
        ]
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        trained = [record for record in records if "metrics" in record]
        return [r for r in trained if not any(name.startswith("system/") for name in r["metrics"])]

    def checkpoints(self) -> list[Path]:
        """Return the folders of the complete checkpoints, the newest last."""
        found = self.folder.glob("runs/tiny/*/checkpoints/*/manifest.json")
        return sorted((path.parent for path in found), key=lambda path: path.name)

    def finish(self) -> tuple[int, dict[str, Any], str]:
        return finish(self.process, 300)


def _path() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))


def prepare(folder: Path, **changes: Any) -> Path:
    """Write a job of 80 steps of 0.1 s, saved every 4; without dropout, so that the number of workers has no effect."""
    settings = {
        "train.epochs": EPOCHS,
        "train.batch_size": BATCH,
        "train.early_stopping": None,
        "train.checkpoint": {"interval": None, "every_n_steps": EVERY, "keep": {"last": 2}},
        "inputs.image.encoder": {"type": "slow_encoder:SlowMean", "options": {"hang": str(folder / "hang")}},
        "inputs.text.encoder.dropout": 0.0,
        "compute.workers": 2,
        **changes,
    }
    tiny_jobs.make_rows(folder, ROWS, "train")
    tiny_jobs.make_rows(folder, 24, "test")
    job = tiny_jobs.tiny_job(folder, **settings)
    (folder / "job.yaml").write_text(job.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of the run without faults."""
    training = Training(prepare(tmp_path_factory.mktemp("undisturbed")), nodes)
    code, data, err = training.finish()
    assert code == 0, err
    return data


def assert_same_result(data: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert data["metrics"] == pytest.approx(undisturbed["metrics"], abs=1e-4)
    assert data["validation"] == pytest.approx(undisturbed["validation"], abs=1e-4)


def random_step(rng: random.Random) -> int:
    """Return a random step after the first epoch, well before the end."""
    return rng.randrange(STEPS, STEPS * (EPOCHS - 3))


def workers(nodes: Nodes, number: int | None = None) -> list[psutil.Process]:
    """Return the worker processes on all nodes or on one."""
    found = []
    for node in [number] if number else [1, 2]:
        found += [p for p in nodes.processes(node) if "TrainWorker" in " ".join(p.cmdline())]
    return found


def lines_with(err: str, text: str) -> list[str]:
    return [line for line in err.splitlines() if text in line]


def test_a_killed_worker_is_replaced(
    nodes: Nodes, undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path
) -> None:
    training = Training(prepare(tmp_path), nodes)
    training.wait_for_step(random_step(rng))
    rng.choice(workers(nodes)).kill()
    code, data, err = training.finish()
    assert code == 0, err
    assert_same_result(data, undisturbed)
    [line] = lines_with(err, "from step")
    assert "with 2 workers" in line
    resumed_from = int(line.partition("from step ")[2].split()[0])
    reached = max(
        record["step"]
        for record in training.records()
        if record["time"] < next(r["time"] for r in training.records() if "from step" in r.get("text", ""))
    )
    assert (
        reached - resumed_from < 2 * EVERY + 10
    )  # two intervals, and the steps of the last unreported second


def test_a_hang_is_logged_with_all_stacks_and_recovered(
    nodes: Nodes, undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path
) -> None:
    training = Training(prepare(tmp_path, **{"compute.hang_timeout": 6}), nodes)
    training.wait_for_step(random_step(rng))
    (tmp_path / "hang").touch()
    code, data, err = training.finish()
    assert code == 0, err
    assert_same_result(data, undisturbed)
    for rank in (0, 1):
        assert lines_with(err, f"rank {rank}: no progress for"), err
    assert lines_with(err, "in hang_forever")


def test_a_run_shrinks_with_a_lost_node_and_grows_with_a_new_one(
    undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", _path())
    nodes = Nodes(1, 1)
    try:
        elastic = {
            "compute.workers": [1, 2],
            "compute.resize_interval": 4,
            "inputs.image.encoder.options.seconds": 1.5,
        }
        training = Training(prepare(tmp_path, **elastic), nodes)
        training.wait_for_step(rng.randrange(5, 15))
        nodes.kill(rng.choice([1, 2]))
        wait_for(lambda: "from step" in messages(training), training.process)
        assert "with 1 workers" in messages(training)
        training.wait_for_step(training.step() + 5)
        nodes.add(1)
        wait_for(lambda: "with 2 workers" in messages(training), training.process)
        code, data, err = training.finish()
        assert code == 0, err
        assert_same_result(data, undisturbed)
    finally:
        nodes.stop()


def messages(training: Training) -> str:
    return "\n".join(record["text"] for record in training.records() if "text" in record)


def test_a_preemption_notice_triggers_a_checkpoint(
    undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", _path())
    nodes = Nodes(1, 1, 1)
    try:
        no_other = {"train.checkpoint": {"interval": None, "keep": {"last": 2}}, "train.epochs": 2}
        slow = {"inputs.image.encoder.options.seconds": 4}
        training = Training(prepare(tmp_path, **no_other, **slow), nodes)
        training.wait_for_step(rng.randrange(1, 3))
        drain(nodes, number := next(n for n in (1, 2, 3) if workers(nodes, n)), seconds=60)
        wait_for(training.checkpoints, training.process)
        [checkpoint] = training.checkpoints()
        assert int(checkpoint.name.partition("-")[2]) < STEPS
        nodes.kill(number)
        code, _, err = training.finish()
        assert code == 0, err
        assert lines_with(err, f"from step {int(checkpoint.name.partition('-')[2])} ")
    finally:
        nodes.stop()


def drain(nodes: Nodes, number: int, seconds: int) -> None:
    """Announce to Ray that a node is preempted, as a cloud does."""
    script = (
        "import json, ray, sys; ray.init(logging_level='ERROR'); "
        "print(json.dumps({n['NodeManagerPort']: n['NodeID'] for n in ray.nodes() if n['Alive']}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=nodes.environment, capture_output=True, text=True, check=True
    )
    ids = json.loads(done.stdout.splitlines()[-1])
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
    command += ["--node-id", ids[str(nodes.manager_port(number))], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, env=nodes.environment, check=True, capture_output=True)


def test_a_corrupt_newest_checkpoint_is_skipped_with_a_warning(
    nodes: Nodes, undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path
) -> None:
    training = Training(prepare(tmp_path), nodes)
    training.wait_for_step(random_step(rng))
    training.process.send_signal(signal.SIGKILL)
    training.process.communicate()
    waiting.wait_for(lambda: not workers(nodes))
    *_, before, newest = training.checkpoints()
    file = newest / rng.choice(["model.safetensors", "optimizer.safetensors"])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))
    training.start()
    code, data, err = training.finish()
    assert code == 0, err
    [warning] = lines_with(err, newest.name)
    assert warning.startswith("WARNING ")
    assert file.name in warning
    assert lines_with(err, f"from step {int(before.name.partition('-')[2])} ")
    assert_same_result(data, undisturbed)


def test_a_storage_outage_of_ten_seconds_is_retried(
    outside_ray: dict[str, str], undisturbed: dict[str, Any], rng: random.Random, tmp_path: Path
) -> None:
    folder = prepare(
        tmp_path, **{"output.storage": "s3://bucket/runs", "output.tracking_uri": f"{tmp_path}/mlflow.db"}
    )
    with s3_server(tmp_path) as server, contextlib.closing(Cuttable(server)) as s3:
        training = Training(folder, None, **s3.environment)
        enough = rng.randrange(3, 9)
        wait_for(lambda: written(server) >= enough, training.process)
        s3.fail_for(10)
        code, data, err = training.finish()
    assert code == 0, err
    assert s3.num_rejected
    assert not lines_with(err, "from step")
    assert_same_result(data, undisturbed)


def written(server: S3) -> int:
    """Return the number of the newest complete checkpoint on a server."""
    files = server.filesystem().glob("bucket/runs/tiny/*/checkpoints/*/manifest.json")
    return max((int(file.split("/")[-2].partition("-")[2]) for file in files), default=0) // EVERY


def test_a_run_whose_storage_is_deleted_ends_with_the_reason(
    nodes: Nodes, rng: random.Random, tmp_path: Path
) -> None:
    """It also has its rows and MLflow's database there, and does not create any of it again."""
    training = Training(prepare(tmp_path, **{"train.epochs": 100}), nodes)
    training.wait_for_step(random_step(rng))
    shutil.rmtree(tmp_path / "runs")
    code, data, err = training.finish()
    assert code == 1, err
    assert data["error"]["type"] == "ResourceError"
    assert "the folder of the run does not exist any more" in data["error"]["message"]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/tiny/*/checkpoints"))


def test_a_full_disk_ends_the_run_and_its_checkpoints_remain(
    outside_ray: dict[str, str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    storage = tmp_path / "disk"
    with contextlib.closing(SmallDisk(storage, 60)) as disk:
        folder = prepare(
            tmp_path, **{"output.storage": str(storage), "output.tracking_uri": f"{tmp_path}/mlflow.db"}
        )
        checkpoints = disk.seen_from_here / "tiny"
        training = Training(folder, None, before=disk.prefix)
        wait_for(lambda: len(list(checkpoints.glob("*/checkpoints/*/manifest.json"))) >= 2, training.process)
        disk.fill()
        code, data, err = training.finish()
        assert code == 1, err
        assert "No space left on device; free some space" in data["error"]["message"], data
        disk.make_room()
        training.start()
        code, data, err = training.finish()
        assert code == 0, err
        assert lines_with(err, "from step")
        assert_same_result(data, undisturbed)

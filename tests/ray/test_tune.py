"""`rayfuse tune` on a real cluster of several nodes: trials, MLflow, and going on after Ctrl-C and kill -9."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
from mlflow import MlflowClient
from nodes import Nodes

from rayfuse.cluster.local import LocalCluster

RAYFUSE = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Nodes]:
    """A head without CPUs and two nodes of one CPU each."""
    nodes = Nodes(1, 1)
    yield nodes
    nodes.stop()


def write_sweep(folder: Path, **changes: Any) -> Path:
    tiny_jobs.tiny_job(folder)
    content = {
        "kind": "sweep",
        "name": "tiny-sweep",
        "job": "job.yaml",
        "metric": "answer/accuracy",
        "mode": "max",
        "search": {"type": "optuna", "trials": 6, "startup": 2},
        "space": {
            "fusion": {"choice": [{"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1}]},
            "fusion.heads": {"choice": [1, 2, 4], "when": {"fusion.type": "transformer"}},
            "train.optimizer.lr": {"loguniform": [1e-3, 3e-2]},
        },
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(content))
    return path


def start(folder: Path, cluster: Nodes, *options: str) -> subprocess.Popen[str]:
    with (folder / "stderr.log").open("a") as log:
        return subprocess.Popen(
            [*RAYFUSE, "tune", "sweep.yaml", "--json", *options],
            cwd=folder,
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def finish(process: subprocess.Popen[str], folder: Path, timeout: float = 900) -> tuple[int, dict[str, Any]]:
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    assert out, (folder / "stderr.log").read_text()
    return process.returncode, json.loads(out.splitlines()[-1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (folder / "stderr.log").read_text()
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def trials(folder: Path) -> dict[int, dict[str, Any]]:
    files = sorted((folder / "runs" / "tiny-sweep").glob("*/trials/*/trial.json"))
    found = [json.loads(path.read_text()) for path in files]
    assert len({trial["number"] for trial in found}) == len(found)
    return {trial["number"]: trial for trial in found}


def ended(folder: Path) -> dict[int, dict[str, Any]]:
    return {number: trial for number, trial in trials(folder).items() if trial["state"] != "running"}


def tracked(folder: Path) -> tuple[list[Any], list[Any]]:
    """The sweep's own runs in MLflow, and those of its trials."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in children], children


def test_interrupted_and_killed_it_goes_on_where_it_was(
    two_workers: Nodes, ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Each trial needs all of the cluster. With the first rate the loss is no number, with the tiny ones nothing is
    learned. A second cluster runs on the machine: Ray Train cannot tell which of them to clean up after a trial."""
    write_sweep(
        tmp_path,
        metric="loss",
        mode="min",
        search={"type": "grid"},
        space={"train.optimizer.lr": {"grid": [1e30, 0.03, 1e-9, 2e-9, 0.02, 3e-9]}},
        scheduler={"type": "asha", "grace": 1, "reduction": 2},
        trial={"compute.workers": 2},
        concurrency=4,  # more than there is room for
    )
    first = start(tmp_path, two_workers)
    wait_for(lambda: len(ended(tmp_path)) >= 1, first, tmp_path)
    first.send_signal(signal.SIGINT)
    code, data = finish(first, tmp_path)
    assert (code, data["error"]["type"]) == (130, "Interrupted")
    after_interrupt = ended(tmp_path)
    assert 1 <= len(after_interrupt) < 6

    second = start(tmp_path, two_workers)
    wait_for(lambda: len(ended(tmp_path)) > len(after_interrupt), second, tmp_path)
    second.kill()
    second.communicate(timeout=60)
    after_kill = ended(tmp_path)
    assert len(after_kill) < 6

    code, data = finish(start(tmp_path, two_workers, "--register-best"), tmp_path)
    assert code == 0
    known = trials(tmp_path)
    for before in (after_interrupt, after_kill):
        for number, trial in before.items():  # MLflow may have got the last of it later
            assert {**known[number], "sent": True, "seconds": 0} == {**trial, "sent": True, "seconds": 0}
    assert {number: trial["state"] for number, trial in known.items()} == {
        1: "failed", 2: "finished", 3: "stopped", 4: "stopped", 5: "finished", 6: "stopped"
    }  # fmt: skip
    assert re.search(r"the (loss|gradient's norm) is (nan|inf) at step", known[1]["error"])
    assert [len(known[number]["history"]) for number in (2, 3, 4, 5, 6)] == [2, 1, 1, 2, 1]

    others, children = tracked(tmp_path)
    [parent] = [run for run in others if run.info.run_id == data["run_id"]]
    assert len(others) == 2, "the sweep's, and that of the winner's own training"
    assert Counter(run.data.tags["rayfuse.trial"] for run in children) == Counter("123456")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    statuses = {run.data.tags["rayfuse.trial"]: run.info.status for run in children}
    assert statuses == {"1": "FAILED", **dict.fromkeys("23456", "FINISHED")}
    assert {trial["run_id"] for trial in known.values()} == {run.info.run_id for run in children}
    assert parent.info.status == "FINISHED"

    values = [trial["value"] for trial in data["trials"] if trial["value"] is not None]
    assert values == sorted(values)
    assert len(values) == 5
    best = data["best"]
    assert best["value"] == values[0]
    assert best["trial"] in (2, 5)
    assert best["spec"]["train"]["optimizer"]["lr"] == best["values"]["train.optimizer.lr"]
    assert best["spec"]["data"]["test"] == str(tmp_path / "test.jsonl")
    folder = Path(data["sweep"])
    assert [path.stem for path in (folder / "pictures").iterdir()] == ["train.optimizer.lr"]
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    stored = {file.path for file in client.list_artifacts(data["run_id"])}
    assert {"leaderboard.json", "best.json", "pictures"} <= stored
    assert not list(folder.rglob("*.pkl"))
    assert data["registered"]["version"] == 1
    assert data["registered"]["evaluated_on"] == "test"
    assert int(client.get_model_version_by_alias("tiny", "candidate").version) == 1


def test_more_workers_than_the_cluster_has(two_workers: Nodes, tmp_path: Path) -> None:
    write_sweep(tmp_path, trial={"compute.workers": 3})
    code, data = finish(start(tmp_path, two_workers), tmp_path)
    assert code == 2
    assert "sweep.yaml: trial.compute.workers: 3 workers" in data["error"]["message"]
    assert trials(tmp_path) == {}

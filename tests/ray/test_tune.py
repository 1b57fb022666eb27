"""`rayfuse tune` on Ray: trials, MLflow, resume after Ctrl-C and kill -9, and the caller's own Ray."""

import json
import os
import random
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
import ray
import tiny_jobs
import waiting
from mlflow import MlflowClient
from nodes import Nodes

from rayfuse.cluster.local import LocalCluster
from rayfuse.errors import RunInterruptedError
from rayfuse.spec.search_space import load_sweep
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.sweep import run_sweep

RAYFUSE = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Nodes]:
    """Start a head without CPUs and two nodes of one CPU each."""
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
        "search": {"type": "optuna", "trials": 6, "n_startup_trials": 2},
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
    deadline = time.monotonic() + 900
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
    """Return the sweep's own runs in MLflow, and those of its trials."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in children], children


@pytest.mark.slow
def test_an_interrupted_and_killed_sweep_resumes(
    two_workers: Nodes, ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Each trial needs the whole cluster; the first rate gives a NaN loss, the tiny one learns nothing.

    A second cluster runs on the machine, so that Ray Train cannot find the orphaned workers of a trial.
    """
    write_sweep(
        tmp_path,
        metric="loss",
        mode="min",
        search={"type": "grid"},
        space={"train.optimizer.lr": {"grid": [1e30, 0.03, 1e-9, 0.02]}},
        scheduler={"type": "asha", "grace_period": 1, "reduction_factor": 2},
        trial_overrides={"compute.workers": 2},
        concurrency=3,  # more than fits on the cluster
    )
    first = start(tmp_path, two_workers)
    wait_for(lambda: len(ended(tmp_path)) >= 1, first, tmp_path)
    first.send_signal(signal.SIGINT)
    code, data = finish(first, tmp_path)
    assert (code, data["error"]["type"]) == (130, "RunInterruptedError")
    after_interrupt = ended(tmp_path)
    assert 1 <= len(after_interrupt) < 4

    second = start(tmp_path, two_workers)
    wait_for(lambda: len(ended(tmp_path)) > len(after_interrupt), second, tmp_path)
    second.kill()
    second.communicate(timeout=900)
    after_kill = ended(tmp_path)
    assert len(after_kill) < 4

    code, data = finish(start(tmp_path, two_workers, "--register-best"), tmp_path)
    assert code == 0
    known = trials(tmp_path)
    for before in (after_interrupt, after_kill):
        for number, trial in before.items():  # MLflow may have received the rest later
            assert {**known[number], "sent": True, "seconds": 0} == {**trial, "sent": True, "seconds": 0}
    assert {number: trial["state"] for number, trial in known.items()} == {
        1: "failed", 2: "finished", 3: "stopped", 4: "finished"
    }  # fmt: skip
    assert re.search(r"the (loss|gradient's norm) is (nan|inf) at step", known[1]["error"])
    assert [len(known[number]["history"]) for number in (2, 3, 4)] == [2, 1, 2]

    others, children = tracked(tmp_path)
    [parent] = [run for run in others if run.info.run_id == data["run_id"]]
    assert len(others) == 2, "one of the sweep, one of training the best job"
    assert Counter(run.data.tags["rayfuse.trial"] for run in children) == Counter("1234")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    statuses = {run.data.tags["rayfuse.trial"]: run.info.status for run in children}
    assert statuses == {"1": "FAILED", "2": "FINISHED", "3": "KILLED", "4": "FINISHED"}
    assert {trial["run_id"] for trial in known.values()} == {run.info.run_id for run in children}
    assert parent.info.status == "FINISHED"

    values = [trial["value"] for trial in data["trials"] if trial["value"] is not None]
    assert values == sorted(values)
    assert len(values) == 3
    best = data["best"]
    assert best["value"] == values[0]
    assert best["trial"] in (2, 4)
    assert best["spec"]["train"]["optimizer"]["lr"] == best["values"]["train.optimizer.lr"]
    assert best["spec"]["data"]["test"] == str(tmp_path / "test.jsonl")
    folder = Path(data["sweep"])
    assert [path.stem for path in (folder / "plots").iterdir()] == ["train.optimizer.lr"]
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    stored = {file.path for file in client.list_artifacts(data["run_id"])}
    assert {"leaderboard.json", "best.json", "plots"} <= stored
    assert not list(folder.rglob("*.pkl"))
    assert data["registered"]["version"] == 1
    assert data["registered"]["evaluated_on"] == "test"
    assert int(client.get_model_version_by_alias("tiny", "candidate").version) == 1


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_of_each_running_trial(two_workers: Nodes, tmp_path: Path) -> None:
    """Epochs are long, so that the newest checkpoints are from inside of one."""
    tiny_jobs.make_rows(tmp_path, 4000, "train")
    write_sweep(
        tmp_path,
        search={"type": "grid"},
        space={"train.optimizer.lr": {"grid": [0.01, 0.02]}},
        trial_overrides={"train.batch_size": 1, "train.epochs": 500},
        concurrency=2,
    )
    process = start(tmp_path, two_workers)
    wait_for(lambda: len(steps_done(tmp_path)) == 2, process, tmp_path)
    process.send_signal(signal.SIGTERM)
    code, data = finish(process, tmp_path)
    assert code == 143, (tmp_path / "stderr.log").read_text()
    assert [(trial["state"], trial["error"]) for trial in trials(tmp_path).values()] == [
        ("running", None)
    ] * 2
    assert "0 of 2 trials ended and 2 of 2 running ones have a checkpoint" in data["error"]["message"]
    for trial, step in steps_done(tmp_path).items():
        saved = [json.loads(path.read_text()) for path in trial.glob("checkpoints/*/manifest.json")]
        newest = max(saved, key=lambda manifest: manifest["step"])
        assert newest["step"] >= step
        assert newest["metrics"] is None
    others, children = tracked(tmp_path)
    assert {run.info.status for run in [*others, *children]} == {"KILLED"}


def steps_done(folder: Path) -> dict[Path, int]:
    """Return the last training step of each trial that has one, by its folder."""
    found = {}
    for journal in folder.glob("runs/tiny-sweep/*/trials/*/metrics.jsonl"):
        lines = [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]
        steps = [
            record["step"] for record in map(json.loads, lines) if "train/loss" in record.get("metrics", {})
        ]
        if steps:
            found[journal.parent] = max(steps)
    return found


def test_more_workers_than_the_cluster_has(two_workers: Nodes, tmp_path: Path) -> None:
    write_sweep(tmp_path, trial_overrides={"compute.workers": 3})
    code, data = finish(start(tmp_path, two_workers), tmp_path)
    assert code == 2
    assert "sweep.yaml: trial_overrides.compute.workers: 3 workers" in data["error"]["message"]
    assert trials(tmp_path) == {}


@pytest.fixture
def callers_object(ray_cluster: LocalCluster) -> Iterator[Any]:
    """Return an object of a caller who has started Ray, which is lost if the connection is closed."""
    ray.init(log_to_driver=False, ignore_reinit_error=True)
    yield ray.put("kept")
    ray.shutdown()


class SilentReporter:
    """Shows nothing, and interrupts the sweep once a trial has completed an epoch, if it should."""

    def __init__(self, interrupt: bool = False) -> None:
        self.interrupt = interrupt

    def report(self, board: Leaderboard) -> None:
        if self.interrupt and any(trial.history for trial in board.trials):
            self.interrupt = False
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def run_in_process(folder: Path, reporter: SilentReporter, **changes: Any) -> Leaderboard:
    path = write_sweep(folder, search={"type": "random", "trials": 3}, concurrency=2, **changes)
    return run_sweep(load_sweep(path), lambda run: True, lambda text: None, reporter, str(path))


def assert_only_the_caller_is_left(callers_object: Any) -> None:
    assert ray.is_initialized()
    assert ray.get(callers_object) == "kept"
    waiting.wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def write_every_kind_of_fitted_input(folder: Path) -> dict[str, Any]:
    """Write rows with inputs whose scales, vocabularies and kinds come from them, and return a job that reads them."""
    rng = random.Random(0)
    rows = [
        {
            "age": rng.randint(20, 60),
            "city": "AB"[i % 2],
            "size": rng.choice(["s", "m", "l"]),
            "sensor": [[rng.gauss(4 * (i % 2), 1) for _ in range(8)]],
            "history": [f"item{rng.randint(0, 3) + 4 * (i % 2)}" for _ in range(4)],
            "note": rng.choice(["calm", "loud"]),
            "label": f"class{i % 2}",
            "price": rng.uniform(10, 20),
            "marks": rng.sample(["x", "y", "z"], 2),
        }
        for i in range(40)
    ]
    tiny_jobs.write_rows(folder / "rows.jsonl", rows)
    return {
        "kind": "job",
        "name": "fitted",
        "data": {"train": str(folder / "rows.jsonl"), "validation": {"fraction": 0.3}},
        "inputs": {
            "inferred": {"type": "tabular", "columns": ["age", "city"], "encoder": {"type": "mlp"}},
            "typed": {"type": "tabular", "columns": {"size": "category"}, "encoder": {"type": "mlp"}},
            "sensor": {"type": "timeseries", "channels": ["x"], "encoder": {"type": "conv"}},
            "history": {"type": "item_sequence", "max_length": 8, "encoder": {"type": "embedding"}},
            "note": {"type": "text", "encoder": {"type": "conv"}},
        },
        "fusion": {"type": "concat"},
        "tasks": {
            "label": {"type": "classification"},
            "price": {"type": "regression"},
            "marks": {"type": "multi_label"},
        },
        "train": {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.003}, "precision": "fp32"},
        "output": {"storage": str(folder / "runs")},
    }


def test_a_trial_with_the_values_of_its_job_equals_training_that_job(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(write_every_kind_of_fitted_input(tmp_path)))
    sweep = {
        "kind": "sweep",
        "name": "same",
        "job": "job.yaml",
        "metric": "label/accuracy",
        "search": {"type": "grid"},
        "space": {"train.optimizer.lr": {"grid": [0.003]}},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    for command in (["train", "job.yaml"], ["tune", "sweep.yaml"]):
        subprocess.run([*RAYFUSE, *command], cwd=tmp_path, check=True, timeout=900)
    [trained] = (tmp_path / "runs" / "fitted").glob("*/metrics.jsonl")
    [trial] = (tmp_path / "runs" / "same").glob("*/trials/0001/metrics.jsonl")
    expected, found = validation_metrics(trained), validation_metrics(trial)
    assert len(expected) == 2, "two epochs"
    assert len(expected[3]) > 10
    assert found == {step: pytest.approx(metrics, rel=1e-6, abs=1e-6) for step, metrics in expected.items()}


def validation_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Return the validation metrics at the end of each epoch by step; the final evaluation has more of them."""
    records = [json.loads(line) for line in reversed(path.read_text().splitlines())]
    return {
        record["step"]: {
            name: value for name, value in record["metrics"].items() if name.startswith("validation/")
        }
        for record in records
        if "validation/loss" in record.get("metrics", {})
    }


def tune_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("TUNE_", "RAY_AIR_"))}


@pytest.mark.slow
def test_a_sweep_leaves_the_callers_ray_alone(callers_object: Any, tmp_path: Path) -> None:
    settings = tune_settings()
    space = {"train.optimizer.lr": {"loguniform": [1e-3, 3e-2]}}
    board = run_in_process(tmp_path, SilentReporter(), space=space)
    assert_only_the_caller_is_left(callers_object)
    assert tune_settings() == settings

    best, results = board.best(), board.results
    assert best is not None
    assert results is not None
    found = results.get_best_result()
    assert found.config["number"] == best.number
    assert found.metrics["best/answer/accuracy"] == board.value(best)
    assert found.metrics["answer/accuracy"] == best.history[-1]["answer/accuracy"]
    assert found.metrics["summary"]["history"] == best.history
    epochs = found.metrics_dataframe.dropna(subset="answer/accuracy").drop_duplicates("epoch")
    assert list(epochs["answer/accuracy"]) == [metrics["answer/accuracy"] for metrics in best.history]
    table = results.get_dataframe().set_index("config/number").sort_index()
    assert dict(table["best/answer/accuracy"]) == {trial.number: board.value(trial) for trial in board.trials}
    assert list(table["state"]) == ["finished"] * 3


def test_an_interrupted_sweep_ends_its_trials_and_leaves_the_callers_ray_alone(
    callers_object: Any, tmp_path: Path
) -> None:
    space = {"train.optimizer.lr": {"loguniform": [1e-3, 3e-2]}}
    long = {"trial_overrides": {"train.epochs": 500, "train.early_stopping": None}}
    with pytest.raises(RunInterruptedError):
        run_in_process(tmp_path, SilentReporter(interrupt=True), space=space, **long)
    assert_only_the_caller_is_left(callers_object)
    assert {trial["state"] for trial in trials(tmp_path).values()} == {"running"}

"""`rayfuse train` on a real cluster: workers, checkpoints, MLflow and the registry."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
from mlflow import MlflowClient
from s3_server import s3_server
from training_runs import finish, runs, start_training, steps_done, validated, validations, wait_for

from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.registry.versions import get_version

pytestmark = pytest.mark.ray
MANY = 60
"""Epochs of a few steps: enough for something to happen meanwhile."""


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run has a complete checkpoint."""
    return bool(list((folder / "runs").glob("tiny/*/checkpoints/*/manifest.json")))


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")


@pytest.fixture(scope="module")
def trained(
    ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """Train two epochs with two workers under ZeRO-2, on rows with missing inputs."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_jobs.tiny_job(folder, audio=True)
    code, data, err = finish(start_training(folder, "--set", "compute.workers=2"))
    assert code == 0, err
    return folder, data, err


def test_the_output_has_the_rows_and_the_result(trained: tuple[Path, dict[str, Any], str]) -> None:
    _, data, err = trained
    assert "rows: train " in err
    assert "missing: image in " in err
    assert set(data) >= {"run_id", "model", "version", "metrics", "checkpoint", "seconds"}
    assert data["model"] == "tiny"
    assert data["version"] == 1
    assert data["evaluated_on"] == "test"
    assert next(iter(data["by_inputs"])) == "image+text+audio"
    assert len(data["by_inputs"]) == 7


def test_the_best_and_last_checkpoints_are_kept_without_pickle(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    folder, data, _ = trained
    run = Path(data["run"])
    checkpoints = sorted(run.glob("checkpoints/*/"))
    assert 1 <= len(checkpoints) <= 3  # the best and the last two
    assert Path(data["checkpoint"]) in checkpoints
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert {"run.json", "job.json", "metrics.jsonl", "evaluation.json", "weights.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))]
    [status] = runs(folder)
    assert status["status"] == "finished"


def test_everything_is_logged_to_mlflow(trained: tuple[Path, dict[str, Any], str]) -> None:
    folder, data, _ = trained
    run = client(folder).get_run(data["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.deepspeed.stage"] == "2"
    assert "data.train.digest" in run.data.params
    assert run.data.metrics["test/answer/accuracy"] == pytest.approx(data["metrics"]["answer/accuracy"])
    assert len(client(folder).get_metric_history(data["run_id"], "validation/answer/f1_macro")) == 2
    assert client(folder).get_metric_history(data["run_id"], "train/loss")
    plots = {Path(found.path).name for found in client(folder).list_artifacts(data["run_id"], "plots")}
    assert {"confusion_answer.png", "learning_curves.png", "by_inputs.png"} <= plots
    assert {found.path for found in client(folder).list_artifacts(data["run_id"])} >= {
        "spec.json",
        "evaluation.json",
    }


def test_the_model_is_registered_as_candidate(trained: tuple[Path, dict[str, Any], str]) -> None:
    folder, data, _ = trained
    version = client(folder).get_model_version_by_alias("tiny", "candidate")
    assert int(version.version) == data["version"]


@pytest.mark.slow
def test_a_model_of_many_classes_is_registered(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    """Two workers merge the counts of their rows, and no file, metric or parameter lists classes times rows."""
    classes = [f"class {i}" for i in range(300)]
    for name, start in (("train", 0), ("test", 1)):
        rows = [{"text": f"item {i}", "label": classes[i], "labels": classes[i : i + 2]} for i in range(300)]
        tiny_jobs.write_rows(tmp_path / f"{name}.jsonl", rows[start:])
    content = tiny_jobs.job_content(tmp_path)
    del content["inputs"]["image"]
    content["tasks"] = {
        "answer": {
            "type": "classification",
            "column": "label",
            "classes": classes,
            "class_weights": "balanced",
        },
        "tags": {"type": "multi_label", "column": "labels", "classes": classes, "top_k": 3},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    code, data, err = finish(
        start_training(tmp_path, "--set", "compute.workers=2", "--set", "train.epochs=1")
    )
    assert code == 0, err
    assert max(map(len, err.splitlines())) < 1000
    mlflow = client(tmp_path)
    assert int(mlflow.get_model_version_by_alias("tiny", "candidate").version) == data["version"]
    run = mlflow.get_run(data["run_id"])
    assert len(run.data.metrics) < 150
    assert len(run.data.params) < 150
    evaluation = json.loads(Path(data["run"], "evaluation.json").read_text())
    details = evaluation["details"]["answer"]
    assert len(details["per_class"]) == 300
    assert sum(count for _, _, count in details["confusion"]) == evaluation["rows"] == 299
    assert {"answer/ece", "tags/map", "tags/ece"} <= data["metrics"].keys()


@pytest.mark.slow
def test_distillation_with_ema_and_a_model_soup(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    teacher = tiny_jobs.make_model_folder(tmp_path, steps=20)
    folder = tmp_path / "data"
    aids = {
        "train.distillation": {"teacher": str(teacher)},
        "train.ema": {"decay": 0.9},
        "train.model_soup": 2,
        "train.epochs": 3,
        "compute.workers": 2,
    }
    options = [f"--set={key}={json.dumps(value)}" for key, value in aids.items()]
    code, data, err = finish(start_training(folder, *options))
    assert code == 0, err
    run = Path(data["run"])
    assert Path(data["checkpoint"]) == run / "soup"
    assert (run / "teacher" / "rayfuse.json").exists()
    assert all((path / "raw_weights.safetensors").exists() for path in run.glob("checkpoints/*/"))
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert 1 <= evaluation["soup"] <= 2
    best = max(epoch["answer/accuracy"] for epoch in evaluation["history"])
    assert evaluation["best_validation"]["answer/accuracy"] >= best
    journal = (run / "metrics.jsonl").read_text()
    assert "train/loss/distillation/answer" in journal


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(trained: tuple[Path, dict[str, Any], str]) -> None:
    folder, data, _ = trained
    code, again, err = finish(start_training(folder, "--set", "train.epochs=1", "--set", "compute.workers=1"))
    assert code == 0, err
    assert again["version"] == data["version"] + 1
    assert again["run_id"] != data["run_id"]


def test_sigterm_saves_a_checkpoint_inside_the_epoch(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    tiny_jobs.make_rows(tmp_path, 4000, "train")
    tiny_jobs.tiny_job(tmp_path)
    process = start_training(tmp_path, "--set", "train.epochs=50", "--set", "train.batch_size=1")
    wait_for(lambda: steps_done(tmp_path) > 0, process)
    process.send_signal(signal.SIGTERM)
    code, data, err = finish(process)
    assert code == 143, err
    [status] = runs(tmp_path)
    assert status["status"] == "interrupted"
    step = int(data["error"]["message"].partition("the checkpoint of step ")[2].split()[0])
    assert steps_done(tmp_path) <= step < 4000


@pytest.mark.slow
def test_a_run_resumes_after_ctrl_c_with_another_number_of_workers(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    epochs = ("--set", f"train.epochs={MANY}", "--set", "train.early_stopping=null")
    process = start_training(tmp_path, *epochs, "--set", "compute.workers=2")
    wait_for(lambda: has_checkpoint(tmp_path), process)
    process.send_signal(signal.SIGINT)
    code, data, err = finish(process)
    assert code == 130, err
    assert "the checkpoint of step" in data["error"]["message"]
    [status] = runs(tmp_path)
    assert status["status"] == "interrupted"
    done = len(validations(tmp_path))

    code, data, err = finish(start_training(tmp_path, *epochs, "--set", "compute.workers=1"))
    assert code == 0, err
    assert "resuming the unfinished run" in err
    assert [run["status"] for run in runs(tmp_path)] == ["finished"]
    steps = validations(tmp_path)
    assert len(set(steps)) == MANY
    assert steps.count(min(steps)) == 1  # the first epoch was not trained again
    assert done < MANY


@pytest.mark.slow
def test_a_killed_cross_validation_resumes_at_its_fold(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    tiny_jobs.tiny_job(tmp_path)
    options = ("--set", "data.folds=3", "--set", "data.stratify=label", "--set", "train.epochs=1")
    process = start_training(tmp_path, *options)
    wait_for(lambda: list((tmp_path / "runs").glob("tiny/*/fold-2")), process)
    process.kill()
    process.communicate()
    [first] = (tmp_path / "runs").glob("tiny/*/fold-1/metrics.jsonl")
    before = first.read_text()

    code, data, err = finish(start_training(tmp_path, *options))
    assert code == 0, err
    assert first.read_text() == before
    assert len(data["folds"]) == 3
    accuracies = [fold["answer/accuracy"] for fold in data["folds"]]
    assert data["cross_validation"]["answer/accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert data["evaluated_on"] == "test"

    mlflow = client(tmp_path)
    parent = mlflow.get_run(data["run_id"])
    assert parent.data.metrics["cross_validation/answer/accuracy"] == pytest.approx(sum(accuracies) / 3)
    children = mlflow.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{data['run_id']}'"
    )
    assert {run.info.run_name: run.info.status for run in children} == {
        f"tiny fold {fold}": "FINISHED" for fold in (1, 2, 3)
    }
    version = get_version(mlflow, "tiny", data["version"])
    assert set(version.metrics) == {"validation", "cross_validation", "test"}


@pytest.mark.parametrize("failure", ["too many bad rows", "no such column"])
def test_invalid_data_is_reported_before_training(
    ray_cluster: LocalCluster, tmp_path: Path, failure: str
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    if failure == "too many bad rows":
        for image in list(tmp_path.glob("train*.png"))[:5]:
            image.write_text("not an image")
        options, reason = (), "rows are invalid"
    else:
        options, reason = ("--set", "tasks.answer.column=labl"), "no column `labl`"
    code, data, _ = finish(start_training(tmp_path, *options))
    assert code == 1
    assert reason in data["error"]["message"]
    assert not runs(tmp_path)


def test_an_unavailable_tracking_server_ends_before_training(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    [port] = local.free_ports(1)
    code, data, _ = finish(start_training(tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}"))
    assert code == 4
    assert str(port) in data["error"]["message"]


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts a real MLflow server, always on the same port and database."""
    import httpx

    [port] = local.free_ports(1)
    started: list[subprocess.Popen[bytes]] = []
    database, artifacts = f"sqlite:///{tmp_path}/server.db", str(tmp_path / "artifacts")

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", artifacts]
        with open(tmp_path / "server.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                    return process
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError((tmp_path / "server.log").read_text())

    start.uri = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield start
    for process in started:
        stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(10)


@pytest.mark.slow
def test_a_tracking_server_that_dies_during_training_loses_nothing(
    ray_cluster: LocalCluster, tmp_path: Path, mlflow_server: Any
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    server = mlflow_server()
    options = ("--set", f"train.epochs={MANY}", "--set", "train.early_stopping=null")
    process = start_training(tmp_path, *options, MLFLOW_TRACKING_URI=mlflow_server.uri)
    wait_for(lambda: validated(tmp_path, 1), process)
    stop_group(server)
    code, data, err = finish(process, timeout=400)
    assert code == 4, err
    assert "training is complete" in data["error"]["message"]
    assert len(set(validations(tmp_path))) == MANY

    mlflow_server()
    code, data, err = finish(start_training(tmp_path, *options, MLFLOW_TRACKING_URI=mlflow_server.uri), 400)
    assert code == 0, err
    assert len(validations(tmp_path)) == MANY  # nothing was trained again
    history = MlflowClient(mlflow_server.uri).get_metric_history(data["run_id"], "validation/loss")
    assert len(history) == MANY


@pytest.mark.slow
def test_a_run_on_s3(outside_ray: dict[str, str], tmp_path: Path) -> None:
    """Train on a new local Ray, whose workers inherit the credentials."""
    tiny_jobs.tiny_job(tmp_path)
    options = (
        "--set",
        "output.storage=s3://bucket/runs",
        "--set",
        f"output.tracking_uri={tmp_path}/mlflow.db",
    )
    with s3_server(tmp_path) as s3:
        code, data, err = finish(start_training(tmp_path, *options, **s3.environment))
        assert code == 0, err
        assert data["checkpoint"].startswith("s3://bucket/runs/tiny/")
        names = {path.rsplit("/", 1)[-1] for path in s3.filesystem().find("bucket")}
    assert {"model.safetensors", "optimizer.safetensors", "train_state.json", "weights.safetensors"} <= names

"""Jobs on Kubernetes: submitted, run by an operator, and shown by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import yaml
from mlflow import MlflowClient
from mlflow_server import Server
from waiting import wait_for

from rayfuse.cli import main
from rayfuse.cluster.kubernetes import KubernetesJobClient
from rayfuse.errors import RayfuseError


def job_file(folder: Path, name: str, **changes: Any) -> Path:
    """Return the tiny job over its rows in `folder`, as a user writes it for a cluster."""
    for split, n in (("train", 48), ("test", 24)):
        tiny_jobs.make_rows(folder, n, split)
    content = tiny_jobs.job_content(folder) | {"name": name}
    for path, value in changes.items():
        block, key = path.split("__")
        content.setdefault(block, {})[key] = value
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def submit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run `rayfuse submit`; return exit code, JSON object and standard error."""
    code = main(["submit", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.err


def test_a_job_runs_on_head_and_worker_to_a_registered_version(
    place: Any, mlflow: Server, jobs: KubernetesJobClient, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = job_file(place.folder, "runs", train__epochs=2)
    code, answer, stderr = submit(capsys, spec, "--cluster", place.write(), "--follow")
    assert (code, answer["status"], answer["exit_code"]) == (0, "SUCCEEDED", 0), stderr
    name = answer["name"]
    version = MlflowClient(mlflow.uri).get_model_version_by_alias("runs", "candidate")
    assert version.version == "1"

    log = list(jobs.logs(name))
    assert log[-2].startswith("registered runs version 1 as candidate")
    assert not [line for line in log if "cli.py" in line or "Running entrypoint" in line]
    assert [line for line in log if line not in stderr] == []

    assert main(["jobs", "list", "--cluster", str(place.file), "--json"]) == 0
    listed = {job["name"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}
    assert (listed[name]["kind"], listed[name]["status"], listed[name]["exit_code"]) == (
        "job",
        "SUCCEEDED",
        0,
    )
    assert main(["jobs", "logs", name, "--cluster", str(place.file)]) == 0
    assert capsys.readouterr().out.splitlines() == log
    info = jobs.get(name)
    assert (info.kind, info.status, info.exit_code) == ("job", "SUCCEEDED", 0)
    assert info.started
    assert info.ended
    assert info.started < info.ended
    assert jobs.stop(name) == info

    job = jobs.kube.find("RayJob", name)
    spec_map = next(item for item in jobs.kube.list("ConfigMap") if item["metadata"]["name"].startswith(name))
    assert job
    assert spec_map["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert yaml.safe_load(spec_map["data"]["job.yaml"]) == yaml.safe_load(spec.read_text())


def test_a_failing_job_ends_with_its_exit_code_and_log(
    place: Any, jobs: KubernetesJobClient, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = job_file(place.folder, "fails")
    nowhere = place.write(
        env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, submission={"mode": "SidecarMode", "ttl": "1h"}
    )
    code, answer, stderr = submit(capsys, spec, "--cluster", nowhere, "--follow")
    assert (code, answer["status"], answer["exit_code"]) == (4, "FAILED", 4), stderr
    assert answer["message"].startswith("error: MLflow at http://127.0.0.1:9 is not reachable")
    assert [line for line in jobs.logs(answer["name"]) if line.strip()] == [answer["message"]]
    jobs.kube.delete("RayJob", answer["name"])  # its cluster would stay for an hour


def test_a_running_job_is_stopped(
    place: Any, jobs: KubernetesJobClient, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = job_file(place.folder, "stops", train__epochs=100_000, train__early_stopping=None)
    code, answer, _ = submit(capsys, spec, "--cluster", place.write(), "--name", "stops")
    assert (code, answer["name"], answer["status"]) == (0, "stops", "PENDING")
    wait_for(lambda: jobs.get("stops").status == "RUNNING")
    log = jobs.logs("stops", follow=True)
    assert next(line for line in log if "  validation  loss " in line).startswith("epoch ")

    info = jobs.stop("stops")
    assert (info.status, info.exit_code) == ("STOPPED", None)
    assert not [line for line in log if "Traceback" in line]  # and it ends
    with pytest.raises(RayfuseError, match="stops: STOPPED; its log was deleted with its pods"):
        list(jobs.logs("stops"))
    assert not [pod for pod in jobs.kube.list("Pod") if pod["metadata"]["name"].startswith("stops")]
    assert jobs.stop("stops") == info
    code, answer, stderr = submit(capsys, spec, "--cluster", place.file, "--name", "stops")
    assert (code, answer["error"]["type"]) == (2, "SpecError")
    assert "RayJob stops: already exists; choose another name" in stderr


@pytest.mark.slow
def test_a_sweep_runs_with_its_job(place: Any, mlflow: Server, capsys: pytest.CaptureFixture[str]) -> None:
    job_file(place.folder, "swept", train__epochs=1)
    sweep = {
        "kind": "sweep",
        "name": "sweep",
        "job": "job.yaml",
        "metric": "answer/accuracy",
        "search": {"type": "grid"},
        "space": {"train.optimizer.lr": {"grid": [0.01, 0.001]}},
    }
    spec = place.folder / "sweep.yaml"
    spec.write_text(yaml.safe_dump(sweep))
    code, answer, stderr = submit(capsys, spec, "--cluster", place.write(), "--follow")
    assert (code, answer["kind"], answer["status"]) == (0, "sweep", "SUCCEEDED"), stderr
    client = MlflowClient(mlflow.uri)
    experiment = client.get_experiment_by_name("swept")
    assert experiment
    assert len(client.search_runs([experiment.experiment_id])) == 3  # the sweep and its two trials

"""Jobs on a real Ray, through its Jobs API."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
from mlflow import MlflowClient
from waiting import wait_for

import rayfuse
from rayfuse.cli import main
from rayfuse.cluster.local import LocalCluster
from rayfuse.cluster.rayjobs import RayJobClient, submit
from rayfuse.errors import SpecError, UnavailableError

RUN = f"{sys.executable} main.py"


def printed(lines: Iterable[str]) -> Iterator[str]:
    """Return a log without the lines that Ray itself writes into it."""
    return (line for line in lines if "job_manager.py" not in line and not line.startswith("Running entry"))


@pytest.fixture(scope="module")
def jobs(ray_cluster: LocalCluster) -> RayJobClient:
    return RayJobClient.connect(ray_cluster.dashboard_url)


@pytest.fixture(scope="module")
def good(ray_cluster: LocalCluster) -> str:
    """Return a finished job that has printed its arguments."""
    files = {
        "main.py": "import os, pathlib; print(pathlib.Path('spec/job.yaml').read_text() + os.environ['PLACE'])",
        "spec/job.yaml": "kind: job\n",
    }
    name = submit(ray_cluster.dashboard_url, "good", "job", files, RUN, {"PLACE": "here"})
    lines = RayJobClient.connect(ray_cluster.dashboard_url).logs(name, follow=True)
    assert list(printed(lines)) == ["kind: job", "here"]
    return name


@pytest.fixture(scope="module")
def failed(ray_cluster: LocalCluster, good: str) -> str:
    script = "print('about to fail'); raise SystemExit(3)"
    name = submit(ray_cluster.dashboard_url, "failed", "sweep", {"main.py": script}, RUN, {})
    list(RayJobClient.connect(ray_cluster.dashboard_url).logs(name, follow=True))
    return name


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["jobs", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_job_that_succeeds(jobs: RayJobClient, good: str, ray_cluster: LocalCluster) -> None:
    job = jobs.get(good)
    assert (job.name, job.kind, job.status, job.exit_code) == ("good", "job", "SUCCEEDED", 0)
    assert (job.message, job.dashboard_url) == ("", ray_cluster.dashboard_url)
    assert job.started
    assert job.ended
    assert job.started < job.ended


def test_a_failed_job_has_its_exit_code_and_log(jobs: RayJobClient, failed: str) -> None:
    job = jobs.get(failed)
    assert (job.kind, job.status, job.exit_code) == ("sweep", "FAILED", 3)
    assert job.message == "Job entrypoint command failed with exit code 3"
    assert list(printed(jobs.logs(failed))) == ["about to fail"]


def test_jobs_without_the_memory_are_not_submitted(
    jobs: RayJobClient, ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    wait_for(jobs.largest_node_memory)
    content = tiny_jobs.job_content(tmp_path) | {"fusion": {"type": "concat", "hidden": 10**6}}
    with pytest.raises(
        SpecError, match=f"each worker needs .* on the largest node of {ray_cluster.dashboard_url}; "
    ):
        rayfuse.submit(content, address=ray_cluster.dashboard_url, name="large")
    assert "large" not in [job.name for job in jobs.list()]


def test_a_log_is_followed_to_the_end_of_the_job(
    jobs: RayJobClient, ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    script = f"""
import pathlib, time
print("one", flush=True)
while not pathlib.Path({str(gate)!r}).exists():
    time.sleep(0.05)
print("two", flush=True)
print("no newline", end="")
"""
    submit(ray_cluster.dashboard_url, "followed", "job", {"main.py": script}, RUN, {})
    lines = printed(jobs.logs("followed", follow=True))
    assert next(lines) == "one"
    assert jobs.get("followed").status == "RUNNING"
    assert list(printed(jobs.logs("followed"))) == ["one"]
    gate.touch()
    assert list(lines) == ["two", "no newline"]
    assert jobs.get("followed").status == "SUCCEEDED"


def test_a_running_job_is_stopped(
    jobs: RayJobClient, ray_cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import time; print('started', flush=True); time.sleep(3600)"
    submit(ray_cluster.dashboard_url, "stopped", "job", {"main.py": script}, RUN, {})
    assert next(printed(jobs.logs("stopped", follow=True))) == "started"
    code, answer = command(capsys, "stop", "stopped", "--address", ray_cluster.dashboard_url)
    assert (code, answer["status"]) == (0, "STOPPED")
    assert jobs.stop("stopped") == jobs.get("stopped")


def test_an_ended_job_is_not_changed(jobs: RayJobClient, good: str) -> None:
    assert jobs.stop(good).status == "SUCCEEDED"


def test_the_newest_is_listed_first(jobs: RayJobClient, failed: str, good: str) -> None:
    names = [job.name for job in jobs.list()]
    assert names.index(failed) < names.index(good)


def test_names_are_unique(ray_cluster: LocalCluster, good: str) -> None:
    with pytest.raises(SpecError, match="good: a job of this name exists on"):
        submit(ray_cluster.dashboard_url, good, "job", {"main.py": ""}, RUN, {})


def test_an_unknown_name_suggests_a_similar_one(jobs: RayJobClient, good: str, failed: str) -> None:
    for call in (jobs.get, jobs.stop, lambda name: list(jobs.logs(name))):
        with pytest.raises(SpecError, match=r"faiiled: no such job; did you mean failed\?"):
            call("faiiled")
    with pytest.raises(SpecError, match=r"a/b\?c: no such job; known jobs: .*good"):
        jobs.get("a/b?c")


def test_a_wrong_token_is_rejected(ray_cluster: LocalCluster) -> None:
    stranger = RayJobClient.connect(ray_cluster.dashboard_url, {"RAY_AUTH_TOKEN": "wrong"})
    with pytest.raises(UnavailableError, match="authentication to Ray at"):
        stranger.list()


def test_on_the_command_line(
    ray_cluster: LocalCluster,
    good: str,
    failed: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = ray_cluster.dashboard_url.removeprefix("http://")
    code, listed = command(capsys, "list", "--address", address)
    assert code == 0
    by_name = {job["name"]: job for job in listed["jobs"]}
    assert (by_name[failed]["status"], by_name[failed]["exit_code"]) == ("FAILED", 3)
    assert command(capsys, "status", failed, "--address", address) == (0, by_name[failed])
    code, answer = command(capsys, "logs", good, "--follow", "--address", address)
    assert (code, list(printed(answer["logs"].split("\n")))) == (0, ["kind: job", "here"])
    assert command(capsys, "status", "unknown", "--address", address)[0] == 2

    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.dashboard_url)
    assert main(["jobs", "list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "KIND", "STATUS", "AGE", "DURATION", "EXIT", "MESSAGE"]
    assert any(row.split()[:3] == [failed, "sweep", "FAILED"] for row in rows)
    assert main(["jobs", "logs", failed]) == 0
    assert list(printed(capsys.readouterr().out.splitlines())) == ["about to fail"]


def test_a_submitted_spec_is_trained(
    ray_cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The variables of the spec come with it; its job ends with exit code 0 and a registered version."""
    tiny_jobs.tiny_job(tmp_path)
    spec = tmp_path / "job.yaml"
    content = json.loads(spec.read_text())
    content["data"] = {**content["data"], "train": "${ROWS:-rows}/train.jsonl"}
    spec.write_text(json.dumps(content))
    options = ["--address", ray_cluster.dashboard_url, "--env", f"ROWS={tmp_path}", "--set", "train.epochs=1"]
    assert main(["submit", str(spec), *options, "--follow", "--json"]) == 0
    captured = capfd.readouterr()
    data = json.loads(captured.out.splitlines()[-1])
    assert (data["status"], data["exit_code"], data["kind"]) == ("SUCCEEDED", 0, "job")
    assert "registered tiny version 1 as candidate" in captured.err
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert int(client.get_model_version_by_alias("tiny", "candidate").version) == 1
    assert RayJobClient.connect(ray_cluster.dashboard_url).get(data["name"]).kind == "job"


def test_a_job_with_invalid_data_has_the_exit_code_of_train(
    ray_cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert (
        main(["submit", str(tmp_path / "job.yaml"), "--address", ray_cluster.dashboard_url, "--follow"]) == 1
    )
    assert "train.jsonl" in capfd.readouterr().out

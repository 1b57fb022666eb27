"""Submission by the Python API, without a cluster."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.api.submission import prepare_submission, render, submit
from rayfuse.api.submitted_jobs import JobLocation, SubmittedJob, get_job, list_jobs
from rayfuse.cluster.jobs import JobInfo
from rayfuse.errors import RayfuseError, RunInterruptedError, SpecError, UnavailableError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.job import Job
from rayfuse.spec.service import Service
from rayfuse.spec.sweep import Sweep

NOWHERE = "http://127.0.0.1:1"
SPACE = {"train.optimizer.lr": {"loguniform": [1.0e-4, 1.0e-2]}, "compute.workers": {"choice": [1, 2]}}
SWEEP: dict[str, Any] = {"name": "search", "metric": "answer/accuracy", "space": SPACE, "concurrency": 2}


@pytest.fixture
def content() -> dict[str, Any]:
    return tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}


@pytest.fixture
def job_file(tmp_path: Path, content: dict[str, Any]) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "job.yaml"


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    return cluster_specs.write(tmp_path)


def test_files_objects_and_dicts_are_rendered_alike(
    content: dict[str, Any], job_file: Path, cluster_file: Path
) -> None:
    overrides = {"train.epochs": 7}
    expected = render(job_file, cluster_file, name="x", **overrides)
    assert [manifest["kind"] for manifest in expected] == ["ConfigMap", "RayJob"]
    assert yaml.safe_load(expected[0]["data"]["job.yaml"])["train"]["epochs"] == 7
    for job in (Job.from_yaml(job_file), content):
        for cluster in (Cluster.from_yaml(cluster_file), cluster_specs.RIGHT):
            config_map, manifest = render(job, cluster, name="x", **overrides)
            sent = yaml.safe_load(config_map["data"]["job.yaml"])
            assert Job(**sent) == Job.from_yaml(job_file, **overrides)
            assert without_digest(manifest) == without_digest(expected[1])


def without_digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest without the digest of the spec's text, which differs in the order of keys."""
    found: dict[str, Any] = json.loads(
        json.dumps(manifest), object_hook=lambda node: {k: v for k, v in node.items() if k != "configMap"}
    )
    return found


def test_rendering_imports_no_heavy_module(job_file: Path, cluster_file: Path) -> None:
    code = (
        "import sys; from rayfuse.api.submission import render; render(*sys.argv[1:])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'lightkube', 'httpx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(job_file), str(cluster_file)], check=True)


def test_a_sweep_in_python_is_sent_with_its_job(content: dict[str, Any], cluster_file: Path) -> None:
    config_map, manifest = render(Sweep(job=Job(**content), **SWEEP), cluster_file, concurrency=3)
    sent = yaml.safe_load(config_map["data"]["sweep.yaml"])
    assert (sent["job"], sent["concurrency"]) == ("job.yaml", 3)
    assert Job(**yaml.safe_load(config_map["data"]["job.yaml"])) == Job(**content)
    [group] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["maxReplicas"] == 2, "six workers with a CPU each, and four CPUs per pod"


def test_a_sweep_in_python_may_name_the_file_of_its_job(job_file: Path, cluster_file: Path) -> None:
    config_map, _ = render(Sweep(job=str(job_file), **SWEEP), cluster_file)
    assert yaml.safe_load(config_map["data"]["job.yaml"]) == yaml.safe_load(job_file.read_text())


@pytest.mark.parametrize("path", ["data.train", "output.storage"])
def test_relative_paths_in_python_are_paths_of_this_machine(
    path: str, content: dict[str, Any], cluster_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(**content).override(**{path: "rows"})
    with pytest.raises(SpecError, match=f"Job: {path}: {tmp_path}/rows is a path of this machine"):
        render(job, cluster_file)
    volume = {"volumes": {"home": {"pvc": "home", "path": str(tmp_path)}}}
    assert render(job, {**cluster_specs.RIGHT, **volume})


def test_rows_in_memory_are_not_sent(content: dict[str, Any], cluster_file: Path) -> None:
    job = Job(**content | {"data": {"train": [{"text": "a", "label": "b"}]}})
    with pytest.raises(SpecError, match="rows in memory cannot be written to YAML"):
        render(job, cluster_file)


def test_a_service_in_python_has_its_keys_on_the_cluster(cluster_file: Path) -> None:
    service = Service(name="tiny", model="models:/tiny@champion", auth={"keys": "${RAYFUSE_API_KEYS:-}"})
    config_map, manifest = render(service, cluster_file)
    assert manifest["kind"] == "RayService"
    assert yaml.safe_load(config_map["data"]["service.yaml"])["auth"] == {"keys": "${RAYFUSE_API_KEYS:-}"}
    with pytest.raises(
        SpecError, match="Service: auth.keys: API keys must not be part of a submitted spec"
    ) as caught:
        render(service.override(**{"auth.keys": "secret-key-of-anna"}), cluster_file)
    assert "secret-key-of-anna" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass exactly one of cluster and address"),
        ({"cluster": cluster_specs.RIGHT, "address": NOWHERE}, "pass exactly one of cluster and address"),
        (
            {"cluster": cluster_specs.RIGHT, "env": {"A": "b"}},
            "env requires address; on Kubernetes use `env`",
        ),
        ({"address": NOWHERE, "env": {"API_KEY": "b"}}, "env API_KEY: appears to be a secret"),
        (
            {"cluster": cluster_specs.RIGHT, "name": "Tiny"},
            "name: 'Tiny' is not a name on a cluster; use at most 47 of a-z",
        ),
        (
            {"address": NOWHERE, "name": "q/w"},
            "name: 'q/w' is not a name on a cluster; use at most 47 of a-z",
        ),
        ({"address": NOWHERE, "name": ""}, "name: '' is not a name on a cluster"),
        (
            {"address": "ray://head:10001"},
            "ray://head:10001: the address of Ray Client, not that of a Ray dashboard",
        ),
        ({"cluster": {"kind": "cluster"}}, "Cluster: image: missing"),
        ({"cluster": cluster_specs.RIGHT, "overrides": {"train.epoch": 1}}, "train.epoch: unknown key"),
    ],
)
def test_invalid_arguments(job_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        prepare_submission(job_file, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            Service(name="tiny", model="/m"),
            "Service: kind: a service cannot be submitted to the address of a Ray",
        ),
        (
            Cluster(**cluster_specs.RIGHT),
            "Cluster: kind: cluster cannot be submitted; use one of: job, sweep",
        ),
        ({"name": "tiny"}, "kind: None is not a kind of spec; one of: job, sweep, service, cluster"),
    ],
)
def test_specs_that_are_no_job(spec: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        submit(spec, address=NOWHERE)
    assert message in str(caught.value)


def test_a_job_for_a_ray_cluster(content: dict[str, Any]) -> None:
    content["data"]["train"] = "${ROWS}/train.jsonl"
    submission = prepare_submission(content, address=NOWHERE, env={"ROWS": "/data"}, name="x")
    assert (submission.name, submission.kind, submission.manifests) == ("x", "job", [])
    with pytest.raises(SpecError, match="a dry run requires a cluster spec"):
        submission.dry_run()
    with pytest.raises(UnavailableError, match=f"{NOWHERE} does not respond"):
        submission.submit()


def test_rows_of_this_machine_are_checked_and_never_stop_a_submission(
    content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.csv").write_text("text,answr\n" + "a,x\nb,y\n" * 9)
    data = {"train": str(tmp_path / "rows.csv")}
    prepared = prepare_submission({**content, "data": data}, address=NOWHERE)
    with pytest.raises(UnavailableError):
        prepared.submit()
    assert "no column" in caplog.text
    caplog.clear()
    with pytest.raises(UnavailableError):
        prepare_submission(content, address=NOWHERE).submit()
    assert "no column" not in caplog.text


def test_unreachable_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=f"{NOWHERE} does not respond"):
        list_jobs(address=NOWHERE)
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    with pytest.raises(UnavailableError, match=f"{NOWHERE} does not respond"):
        get_job("x")


def test_locations_are_mutually_exclusive() -> None:
    with pytest.raises(SpecError, match="address and namespace or context are mutually exclusive"):
        list_jobs(address=NOWHERE, namespace="n")


class Jobs:
    """A cluster with one job, whose next statuses are given; the last one stays."""

    def __init__(self, *statuses: str, **fields: Any) -> None:
        self.infos = [JobInfo("x", **{"kind": "job", **fields, "status": status}) for status in statuses]
        self.error: BaseException | None = None

    def list(self) -> list[JobInfo]:
        return self.infos[:1]

    def get(self, name: str) -> JobInfo:
        if self.error is not None:
            raise self.error
        return self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]

    def logs(self, name: str, follow: bool = False) -> Iterator[str]:
        yield from ("one", "two")

    def stop(self, name: str) -> JobInfo:
        self.infos = [replace(self.infos[-1], status="STOPPED")]
        return self.infos[0]


def submitted(jobs: Jobs, kind: str = "job", **location: Any) -> SubmittedJob:
    return SubmittedJob("x", kind, JobLocation(**{"address": "h:1", **location}), jobs)


def test_waiting_logs_the_statuses_and_passes_the_log_on(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    job = submitted(Jobs("RUNNING", "FAILED", exit_code=3, message="no rows"))
    with caplog.at_level(logging.INFO, "rayfuse"):
        info = job.wait(on_log=lines.append, interval=0.01)
    assert (info.status, info.exit_code) == ("FAILED", 3)
    assert info.summary == "x: FAILED with exit code 3  no rows"
    assert lines == list(job.logs()) == ["one", "two"]
    assert [record.message for record in caplog.records] == ["x: RUNNING with exit code 3  no rows"]


def test_a_service_is_awaited_until_it_runs() -> None:
    job = submitted(Jobs("PENDING", "RUNNING", kind="service"), "service")
    assert job.wait(on_log=print, interval=0.01).status == "RUNNING"
    assert job.commands("status", "logs", "stop") == (
        "status     rayfuse jobs status x --address h:1\nstop       rayfuse jobs stop x --address h:1"
    )


def test_waiting_ends_and_the_job_keeps_running() -> None:
    remedy = "logs       rayfuse jobs logs x --follow --cluster c.yaml\nstop       rayfuse jobs stop x --cluster c.yaml"
    job = submitted(jobs := Jobs("PENDING"), address=None, cluster_file="c.yaml")
    with pytest.raises(RayfuseError) as caught:
        job.wait(timeout=0)
    assert str(caught.value) == f"x: PENDING after 0 s; it keeps running\n{remedy}"
    jobs.error = KeyboardInterrupt()
    with pytest.raises(RunInterruptedError) as interrupted:
        job.wait()
    assert str(interrupted.value) == f"interrupted; x keeps running\n{remedy}"
    jobs.error = None
    assert job.status().status == "PENDING"
    assert job.stop() == job.status()


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ({"address": "h:1"}, "--address h:1"),
        ({"cluster_file": "c.yaml", "namespace": "n"}, "--cluster c.yaml"),
        ({"namespace": "n", "context": "c"}, "--namespace n --context c"),
        ({}, ""),
    ],
)
def test_locations_as_options(location: dict[str, str], options: str) -> None:
    assert JobLocation(**location).options == options

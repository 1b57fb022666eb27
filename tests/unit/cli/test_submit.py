"""`rayfuse submit` without a cluster."""

import json
from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.cli import main, submit
from rayfuse.cluster.jobs import JobInfo


@pytest.fixture
def job(tmp_path: Path) -> str:
    content = tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "job.yaml")


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    return str(cluster_specs.write(tmp_path))


def test_rendering_needs_no_cluster(
    job: str, cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    arguments = ["submit", job, "--cluster", cluster, "--render", "--name", "x", "--set", "train.epochs=7"]
    assert main(arguments) == 0
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [manifest["kind"] for manifest in shown] == ["ConfigMap", "RayJob"]
    assert yaml.safe_load(shown[0]["data"]["job.yaml"])["train"]["epochs"] == 7
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"manifests": shown}


@pytest.mark.parametrize(
    "wrong", ["", "clusters: []\n", "{", "current-context: gone\nclusters: []\ncontexts: []\n"]
)
def test_no_cluster_option(
    wrong: str, job: str, cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    if wrong:
        (tmp_path / "kubeconfig").write_text(wrong)
    assert main(["submit", job, "--cluster", cluster]) == 4
    assert capsys.readouterr().err.startswith("error: Kubernetes: cannot connect to a cluster: ")


def test_unresponsive_cluster(
    job: str,
    cluster: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    assert main(["submit", job, "--cluster", cluster]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: Kubernetes at http://127.0.0.1:9 (context here) is unreachable: ")
    file = cluster_specs.write(tmp_path, context="elsewhere")
    assert main(["submit", job, "--cluster", str(file)]) == 4
    assert "Context 'elsewhere' not found" in capsys.readouterr().err


def test_a_job_is_not_a_cluster_spec(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", job, "--cluster", job]) == 2
    assert "kind: this command requires `cluster`, and the file is `job`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Pass exactly one of --cluster and --address"),
        (["--cluster", "c.yaml", "--address", "h:1"], "exactly one of"),
        (
            ["--cluster", "c.yaml", "--env", "A=b"],
            "--env requires --address; on Kubernetes use `env` of c.yaml",
        ),
        (["--address", "h:1", "--render"], "require --cluster"),
        (["--address", "h:1", "--env", "A"], "--env A: use the form --env NAME=VALUE"),
        (["--address", "h:1", "--env", "API_KEY=b"], "env API_KEY: appears to be a secret"),
    ],
)
def test_invalid_address_or_cluster(
    job: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["submit", job, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "API_KEY=b" not in error


def test_services_cannot_be_submitted_by_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = tmp_path / "service.yaml"
    service.write_text(
        '{kind: service, name: tiny, model: "models:/tiny@champion", auth: {keys: "${KEYS:-}"}}'
    )
    assert main(["submit", str(service), "--address", "http://127.0.0.1:9"]) == 2
    assert "RAY_ADDRESS=http://127.0.0.1:9 rayfuse serve up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("info", "code"),
    [
        ({"status": "SUCCEEDED", "exit_code": 0}, 0),
        ({"status": "RUNNING", "kind": "service"}, 0),
        ({"status": "FAILED", "exit_code": 3}, 3),
        ({"status": "FAILED", "exit_code": -9}, 1),
        ({"status": "FAILED"}, 1),
        ({"status": "STOPPED"}, 1),
    ],
)
def test_the_exit_code_is_that_of_the_job(info: dict[str, Any], code: int) -> None:
    assert submit.exit_code(JobInfo(**{"name": "x", "kind": "job", **info})) == code

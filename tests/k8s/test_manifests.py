"""Manifests in k8s/: accepted by a real API server, and its commands run."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml
from moto.server import ThreadedMotoServer

from rayfuse.cluster.local import free_ports

ROOT = Path(__file__).parents[2]
STORES = ROOT / "k8s" / "mlflow.yaml"
DOCUMENTS = list(yaml.safe_load_all(STORES.read_text()))


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in DOCUMENTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


PODS = [
    pytest.param(one["spec"]["template"]["spec"], one["kind"], id=one["metadata"]["name"])
    for one in DOCUMENTS
    if "template" in one["spec"]
]


def create(kubeconfig: Path, manifest: str) -> subprocess.CompletedProcess[str]:
    """Validate a manifest by a dry run of the API server, which rejects unknown fields."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "--kubeconfig", str(kubeconfig), "create", "--dry-run=server", "--validate=strict"]
    return subprocess.run([*command, "-f", "-"], input=manifest, capture_output=True, text=True, check=False)


def test_the_api_server_accepts_every_document(kubeconfig: Path) -> None:
    done = create(kubeconfig, STORES.read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == len(DOCUMENTS)


def test_misspelled_fields_are_rejected(kubeconfig: Path) -> None:
    done = create(kubeconfig, STORES.read_text().replace("readinessProbe:", "readynessProbe:"))
    assert done.returncode != 0
    assert 'unknown field "spec.template.spec.containers[0].readynessProbe"' in done.stderr


@pytest.mark.parametrize(("pod", "kind"), PODS)
def test_no_pod_is_root_or_without_limits(pod: dict[str, Any], kind: str) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert kind == "Job" or {"readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize(("pod", "kind"), PODS)
def test_secrets_are_named_and_never_written(pod: dict[str, Any], kind: str) -> None:
    for container in pod["containers"]:
        for variable in container.get("env", ()):
            assert (
                "value" in variable or variable["valueFrom"]["secretKeyRef"]["name"] == "rayfuse-credentials"
            )
            assert not (
                "value" in variable and {"KEY", "SECRET", "PASSWORD"} & set(variable["name"].split("_"))
            )


@pytest.mark.parametrize("name", ["mlflow", "s3"])
def test_services_select_their_pods_and_data_is_persistent(name: str) -> None:
    template = named("Deployment", name)["spec"]["template"]
    assert named("Service", name)["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert {"name": "data", "persistentVolumeClaim": {"claimName": name}} in template["spec"]["volumes"]
    assert named("PersistentVolumeClaim", name)["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert named("Deployment", name)["spec"]["strategy"] == {"type": "Recreate"}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start the manifest's MLflow server with a folder instead of its volume, and return its port."""
    folder = tmp_path_factory.mktemp("mlflow")
    [port] = free_ports(1)
    [container] = named("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    given = [*container["command"], *container["args"]]
    moved = {"--port=5000": f"--port={port}", "--host=0.0.0.0": "--host=127.0.0.1"}
    assert moved.keys() <= set(given)
    arguments = [moved.get(word, word).replace("/mlflow/", f"{folder}/") for word in given[1:]]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", given[0], *arguments],
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 600
    while status(port, "/health", "mlflow:5000") != 200:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    assert (folder / "mlflow.db").exists()
    yield port
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def status(port: int, path: str, host: str) -> int | None:
    """Return the status of a request with a host name of the server; None where it is unreachable."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("mlflow:5000", 200),
        ("mlflow.ml.svc:5000", 200),
        ("mlflow.ml.svc.cluster.local:5000", 200),
        ("127.0.0.1:15000", 200),  # through a forwarded port
        ("mlflow.example.com:5000", 403),
    ],
)
def test_mlflow_accepts_the_host_names_of_its_service(mlflow: int, host: str, answer: int) -> None:
    assert status(mlflow, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default", host) == answer


def test_the_bucket_is_created_once(monkeypatch: pytest.MonkeyPatch) -> None:
    [container] = named("Job", "s3-bucket")["spec"]["template"]["spec"]["containers"]
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    program, *arguments = container["command"]
    assert program == "python"
    try:
        for _ in range(2):
            subprocess.run([sys.executable, *arguments], check=True)
        assert s3fs.S3FileSystem(skip_instance_cache=True).ls("") == ["rayfuse"]
    finally:
        server.stop()

"""A Kubernetes API server with KubeRay's schemas, a stand-in for its operator, and an MLflow server.

The API server and the stand-in come from `../shared/kube`, see its README; pods are processes of this
machine. RAYFUSE_TEST_KUBECONFIG names a real cluster instead: tests that only use its API server then use that one,
and those that need pods of this checkout are skipped.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from lightkube import Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import PersistentVolumeClaim
from mlflow_server import Server

from rayfuse.cluster import manifests
from rayfuse.cluster.kubernetes import KubernetesJobClient

KIT = Path(os.environ.get("SHARED", Path(__file__).parents[3] / "shared")) / "kube"
CLIMB = "/.." * 30
"""Out of any folder: the stand-in lays a pod's files out below a folder of its own, and this leads back to the root."""


@dataclass(frozen=True)
class Place:
    """Options of `rayfuse submit --cluster`, and folders that its pods can read and write."""

    file: Path
    content: dict
    folder: Path

    def write(self, **changes: object) -> Path:
        self.file.write_text(yaml.safe_dump(self.content | changes, sort_keys=False))
        return self.file


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set KUBECONFIG for all tests of the session to a cluster with KubeRay's schemas."""
    given = os.environ.get("RAYFUSE_TEST_KUBECONFIG")
    if not given and not KIT.is_dir():
        pytest.skip("neither ../shared/kube is next to this checkout, nor is RAYFUSE_TEST_KUBECONFIG set")
    with pytest.MonkeyPatch.context() as patch:
        if given:
            patch.setenv("KUBECONFIG", given)
            yield Path(given)
            return
        state = tmp_path_factory.mktemp("kube")
        up = subprocess.run([KIT / "up", "--dir", state], check=True, stdout=subprocess.PIPE, text=True)
        try:
            patch.setenv("KUBECONFIG", up.stdout.splitlines()[-1])
            yield Path(up.stdout.splitlines()[-1])
        finally:
            subprocess.run([KIT / "down", "--dir", state], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def restart(kubeconfig: Path) -> Callable[[], None]:
    """Return a function that kills the API server and starts it again."""
    if os.environ.get("RAYFUSE_TEST_KUBECONFIG"):
        pytest.skip("a real cluster is not restarted")
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]

    def restart() -> None:
        os.kill(int((kubeconfig.parent / "kube-api.pid").read_text().split()[0]), signal.SIGKILL)
        command = [KIT / "up", "--dir", kubeconfig.parent, "--port", server.rpartition(":")[2]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return restart


@pytest.fixture(scope="session")
def operator(kubeconfig: Path) -> Iterator[None]:
    """Start a stand-in for the operator, which runs RayJobs and RayServices as processes of this machine."""
    if os.environ.get("RAYFUSE_TEST_KUBECONFIG"):
        pytest.skip("pods of a real cluster have no part in this checkout")
    command = [sys.executable, KIT / "operator.py", "--kubeconfig", kubeconfig, "--auth", "token"]
    command += ["--pass-env", "PYTHONPATH", "--grace", "2"]
    with Client() as client:
        claim = PersistentVolumeClaim(metadata=ObjectMeta(name="all", namespace="default"))
        client.apply(claim, field_manager="test")
    source = Path(manifests.__file__).parents[2]
    with (kubeconfig.parent / "operator.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(source)},
            start_new_session=True,
        )
    yield
    process.terminate()
    process.wait(timeout=120)


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def jobs(kubeconfig: Path) -> KubernetesJobClient:
    return KubernetesJobClient.connect()


@pytest.fixture
def place(
    operator: None, mlflow: Server, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Return a cluster of a head and at most one worker, whose pods share this machine's files."""
    monkeypatch.setattr(manifests, "SPEC_FOLDER", f"{CLIMB}{tmp_path}/spec")
    content = {
        "kind": "cluster",
        "image": "rayfuse:test",
        "head": {"cpu": 1, "memory": "2Gi"},
        "workers": {"cpu": {"max": 1, "cpu": 2, "memory": "2Gi"}},
        "env": {"MLFLOW_TRACKING_URI": mlflow.uri},
        "volumes": {"all": {"pvc": "all", "path": str(tmp_path)}},
    }
    file = tmp_path / "cluster.yaml"
    place = Place(file, content, tmp_path)
    place.write()
    return place

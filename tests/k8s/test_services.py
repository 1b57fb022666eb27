"""A service on Kubernetes: a RayService that reads its spec in the pod, downloads its model and serves it."""

import base64
from pathlib import Path
from typing import Any

import endpoints
import httpx
import pytest
import yaml
from lightkube import Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Secret, Service
from mlflow_server import Server
from tiny_jobs import write_image
from waiting import wait_for

from rayfuse.cli import main
from rayfuse.cluster.kubernetes import KubernetesJobClient

KEY = "secret-key-of-a-test"


@pytest.fixture(scope="module")
def model(mlflow: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a champion."""
    folder = endpoints.make_served_model(tmp_path_factory.mktemp("served"))
    endpoints.make_champion(mlflow.uri, folder, "served")
    return "models:/served@champion"


@pytest.fixture
def keys(kubeconfig: Path) -> str:
    """Return the name of a Secret with an API key."""
    content = {"RAYFUSE_API_KEYS": base64.b64encode(KEY.encode()).decode()}
    with Client() as client:
        client.apply(
            Secret(metadata=ObjectMeta(name="keys", namespace="default"), data=content), field_manager="test"
        )
    return "keys"


def test_a_service_serves_the_champion_is_updated_and_deleted(
    place: Any, model: str, keys: str, jobs: KubernetesJobClient, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = place.folder / "service.yaml"
    auth = {"keys": "${RAYFUSE_API_KEYS:-}"}
    spec.write_text(yaml.safe_dump({"kind": "service", "name": "served", "model": model, "auth": auth}))
    head = {"cpu": 2, "memory": "2Gi"}
    command = [
        "submit",
        str(spec),
        "--cluster",
        str(place.write(head=head, workers={}, secrets={"env": [keys]})),
    ]
    assert main([*command, "--wait", "--timeout", "300"]) == 0, capsys.readouterr().err
    assert "served: RUNNING" in capsys.readouterr().out
    assert [job.kind for job in jobs.list() if job.name == "served"] == ["service"]

    predict = f"{serve_url('served')}/served/predict"
    png = endpoints.b64(write_image(place.folder / "red.png").read_bytes())
    question = {"inputs": {"image": png, "text": "which colour is this?"}}
    endpoints.problem_of(httpx.post(predict, json=question, trust_env=False), 401)
    allowed = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(predict, json=question, headers=allowed, trust_env=False, timeout=300)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == {"name": "served", "version": 1}
    assert KEY not in yaml.safe_dump([jobs.kube.find("RayService", "served"), *jobs.kube.list("ConfigMap")])

    before = jobs.kube.find("RayService", "served")
    assert before
    assert main(command) == 0
    again = jobs.kube.find("RayService", "served")
    assert again
    assert again["metadata"]["generation"] == before["metadata"]["generation"]
    assert main([*command, "--set", "limits.max_queued_requests=9"]) == 0
    changed = wait_for(
        lambda: "updating" in jobs.get("served").message and jobs.kube.find("RayService", "served")
    )
    assert changed["metadata"]["generation"] == before["metadata"]["generation"] + 1
    answer = httpx.post(predict, json=question, headers=allowed, trust_env=False, timeout=300)
    assert answer.status_code == 200, answer.text

    assert jobs.stop("served").status == "STOPPED"
    assert jobs.kube.find("RayService", "served") is None


def serve_url(name: str) -> str:
    """Return the address of Serve on this machine."""
    with Client() as client:
        found = client.get(Service, f"{name}-serve-svc", namespace="default")
    assert found.metadata
    return (found.metadata.annotations or {})["kube-kit/serve-url"].rstrip("/")

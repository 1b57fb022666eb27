"""Why jobs are pending, what their logs and `stop` do meanwhile, and services after a failed update, without an operator."""

import base64
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml
from lightkube import Client
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Namespace, Pod, Secret
from lightkube.types import PatchType

from rayfuse.api.submission import prepare_submission
from rayfuse.cli import main
from rayfuse.cluster.kubernetes import KubernetesJobClient

NAMESPACE = "rayfuse-status"
OPTIONS = ["--namespace", NAMESPACE]
RAYFUSE = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]
OBJECTS = {
    kind: create_namespaced_resource("ray.io", "v1", kind, f"{kind.lower()}s")
    for kind in ("RayCluster", "RayJob", "RayService")
}


@pytest.fixture
def client(kubeconfig: Path) -> Iterator[Client]:
    """Return a client of a namespace that the stand-in for the operator ignores."""
    with Client(namespace=NAMESPACE, field_manager="test") as client:
        client.apply(Namespace(metadata=ObjectMeta(name=NAMESPACE)))
        keys = {"RAYFUSE_API_KEYS": base64.b64encode(b"a" * 16).decode()}
        client.apply(Secret(metadata=ObjectMeta(name="rayfuse-credentials", namespace=NAMESPACE), data=keys))
        yield client


@pytest.fixture
def jobs(client: Client) -> KubernetesJobClient:
    return KubernetesJobClient.connect(NAMESPACE)


@pytest.fixture
def submit(jobs: KubernetesJobClient, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Submit a job or a service of a name, and return its RayJob or RayService; they are deleted at the end."""
    names: dict[str, str] = {}

    def submitted(name: str, spec: dict[str, Any] | None = None, **cluster: Any) -> dict[str, Any]:
        content = tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec or content))
        file = cluster_specs.write(tmp_path, namespace=NAMESPACE, **cluster)
        prepared = prepare_submission(tmp_path / "spec.yaml", file, name=name)
        jobs.submit(prepared.manifests)
        names[name] = prepared.manifests[1]["kind"]
        return jobs.find(name)

    yield submitted
    for name, kind in names.items():
        jobs.kube.delete(kind, name)


def set_status(client: Client, kind: str, name: str, status: dict[str, Any]) -> None:
    client.patch(OBJECTS[kind].Status, name, {"status": status}, patch_type=PatchType.MERGE)


def add_pod(client: Client, name: str, labels: dict[str, str], **status: Any) -> None:
    containers = [{"name": "x", "image": "x"}]
    client.create(
        Pod.from_dict({"metadata": {"name": name, "labels": labels}, "spec": {"containers": containers}})
    )
    client.patch(Pod.Status, name, {"status": {"phase": "Pending", **status}}, patch_type=PatchType.MERGE)


def waiting(reason: str, message: str) -> list[dict[str, Any]]:
    state = {"waiting": {"reason": reason, "message": message}}
    return [{"name": "x", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def test_a_pending_job_has_a_reason(
    client: Client, jobs: KubernetesJobClient, submit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    submit("waits")
    assert "KubeRay's operator has not seen it yet; if this stays, check that" in jobs.get("waits").message

    set_status(
        client, "RayJob", "waits", {"jobDeploymentStatus": "Initializing", "rayClusterName": "waits-c"}
    )
    assert jobs.get("waits").message == ""
    involved = {"kind": "RayCluster", "name": "waits-c", "namespace": NAMESPACE}
    event = {
        "metadata": {"name": "waits.1", "namespace": NAMESPACE}, "involvedObject": involved, "type": "Warning",
        "reason": "FailedToCreateHeadPod", "message": "exceeded quota: gpus", "lastTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    client.create(Event.from_dict(event))
    assert jobs.get("waits").message == "raycluster waits-c: FailedToCreateHeadPod: exceeded quota: gpus"

    add_pod(
        client,
        "waits-worker",
        {"ray.io/cluster": "waits-c", "ray.io/node-type": "worker"},
        initContainerStatuses=waiting("ImagePullBackOff", "Back-off pulling image x"),
        containerStatuses=waiting("PodInitializing", ""),
    )
    assert jobs.get("waits").message == (
        "pod waits-worker: ImagePullBackOff: Back-off pulling image x; check `image` and `image_pull_secrets` of the "
        "cluster spec"
    )
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes fit",
    }
    add_pod(client, "waits-submitter", {"batch.kubernetes.io/job-name": "waits"}, conditions=[unscheduled])
    expected = (
        "pod waits-submitter: Unschedulable: 0/3 nodes fit; add nodes, or lower the cpu, memory and gpus of "
    )
    assert jobs.get("waits").message.startswith(expected)

    assert main(["jobs", "logs", "waits", *OPTIONS]) == 1
    assert f"waits: PENDING  {expected}" in (error := capsys.readouterr().err)
    assert "waits: no log yet" in error
    set_status(
        client, "RayJob", "waits", {"jobDeploymentStatus": "Failed", "message": "failed with exit code 3"}
    )
    assert main(["jobs", "logs", "waits", "--follow", *OPTIONS]) == 3
    assert "waits: FAILED; its log was deleted with its pods" in capsys.readouterr().err
    for pod in ("waits-worker", "waits-submitter"):
        client.delete(Pod, pod)


def test_a_job_that_no_operator_has_seen_is_stopped(
    jobs: KubernetesJobClient, submit: Callable[..., Any]
) -> None:
    submit("unseen")
    assert jobs.stop("unseen").status == jobs.get("unseen").status == "STOPPED"
    assert jobs.find("unseen")["spec"]["suspend"] is True


def test_a_log_is_followed_while_the_api_server_restarts(
    client: Client, submit: Callable[..., Any], restart: Callable[[], None]
) -> None:
    submit("outlives")
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": "x"}
    set_status(client, "RayJob", "outlives", running)
    command = [*RAYFUSE, "jobs", "logs", "outlives", "--follow", *OPTIONS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr
        assert next(follower.stderr) == "outlives: RUNNING\n"
        restart()
        ended = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "failed with exit code 3"}
        set_status(client, "RayJob", "outlives", ended)
        assert follower.wait(180) == 3, follower.stderr.read()


def test_a_service_that_answers_after_a_failed_update(
    client: Client, jobs: KubernetesJobClient, submit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"kind": "service", "name": "served", "auth": {"keys": "${RAYFUSE_API_KEYS:-}"}}
    before = submit("served", {**spec, "model": "models:/served/1"})
    client.create(
        OBJECTS["RayCluster"](
            metadata={"name": "served-a", "namespace": NAMESPACE}, spec=before["spec"]["rayClusterConfig"]
        )
    )
    after = submit("served", {**spec, "model": "models:/served/99"})

    def slot(cluster: str, status: str, message: str = "") -> dict[str, Any]:
        return {
            "rayClusterName": cluster,
            "applicationStatuses": {"served": {"status": status, "message": message}},
        }

    ready = {
        "type": "Ready", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    status = {
        "observedGeneration": after["metadata"]["generation"],
        "conditions": [ready],
        "activeServiceStatus": slot("served-a", "RUNNING"),
        "pendingServiceStatus": slot("served-b", "DEPLOY_FAILED", "models:/served/99: no such version"),
    }
    set_status(client, "RayService", "served", status)
    info = jobs.get("served")
    assert (info.status, info.message) == (
        "UPDATE_FAILED",
        "new version: models:/served/99: no such version; models:/served/1 is still serving",
    )
    assert main(["jobs", "status", "served", *OPTIONS]) == 0
    assert "UPDATE_FAILED" in capsys.readouterr().out
    client.delete(OBJECTS["RayCluster"], "served-a")

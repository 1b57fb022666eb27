"""Requests of `rayfuse submit` to an API server: none for an invalid spec, and both objects or neither."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml
from lightkube import Client
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Secret
from waiting import wait_for

from rayfuse.api.submission import prepare_submission
from rayfuse.cli import main
from rayfuse.cluster import manifests
from rayfuse.cluster.kube import KubeClient
from rayfuse.cluster.kubernetes import KubernetesJobClient
from rayfuse.cluster.submission import TargetEnvironment, build_bundle
from rayfuse.errors import SpecError, UnavailableError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import load_spec

WORKLOAD = create_namespaced_resource("kueue.x-k8s.io", "v1beta1", "Workload", "workloads")
DEFINITION = create_global_resource(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"
)
NAMESPACE = "rayfuse-tests"
RAYFUSE = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]
SERVICE = {
    "kind": "service",
    "name": "checked",
    "model": "models:/tiny@champion",
    "auth": {"keys": "${RAYFUSE_API_KEYS:-}"},
}


@pytest.fixture
def jobs(kubeconfig: Path) -> KubernetesJobClient:
    """Return a namespace that the stand-in for the operator ignores, with the Secret that cluster specs name."""
    with Client() as client:
        client.apply(Namespace(metadata=ObjectMeta(name=NAMESPACE)), field_manager="test")
        secret = Secret(metadata=ObjectMeta(name="rayfuse-credentials", namespace=NAMESPACE))
        client.apply(secret, field_manager="test")
    return KubernetesJobClient.connect(NAMESPACE)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    content = tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def objects(kube: KubeClient) -> set[str]:
    """Return all objects of the kinds that a submission creates, by unique id."""
    kinds = ("RayJob", "RayService", "ConfigMap")
    return {item["metadata"]["uid"] for kind in kinds for item in kube.list(kind)}


def rendered(spec: Path, cluster_file: Path, name: str) -> list[dict[str, Any]]:
    cluster = load_spec(cluster_file, Cluster)
    return manifests.render(
        build_bundle(str(spec), {}, TargetEnvironment.kubernetes(cluster, "c.yaml")), cluster, "c.yaml", name
    )


@pytest.mark.parametrize(
    "wrong", ["no image", "an unknown field", "a token in plain sight", "volumes in one another"]
)
def test_invalid_cluster_specs_are_not_sent(
    wrong: str, job: Path, jobs: KubernetesJobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected_message = cluster_specs.WRONG[wrong]
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_specs.changed({"namespace": NAMESPACE} | changes)))
    before = objects(jobs.kube)
    assert main(["submit", str(job), "--cluster", str(file)]) == 2
    assert f"error: {file}: {expected_message}" in capsys.readouterr().err
    assert objects(jobs.kube) == before


@pytest.mark.parametrize(
    ("options", "expected_message"),
    [
        (["--name", "n" * 48], "name: "),
        (
            ["--set", "compute={workers: 16, cpus_per_worker: 2}"],
            "compute.workers: 16 workers with 2 CPUs each do not fit",
        ),
        (["--set", "data.train=rows.jsonl"], "data.train: 'rows.jsonl' is a path of this machine"),
        (["--set", "data.train=${ROWS}"], "the environment variable ROWS is not set"),
        (["--set", "output.storage=/runs"], "output.storage: /runs is deleted with the pod"),
        (["--set", "fusion={type: concat, hidden: 100000}"], "each worker needs "),
    ],
)
def test_invalid_jobs_are_not_sent(
    options: list[str], expected_message: str, job: Path, jobs: KubernetesJobClient, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = objects(jobs.kube)
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    assert main(["submit", str(job), "--cluster", str(file), *options]) == 2
    assert expected_message in capsys.readouterr().err
    assert objects(jobs.kube) == before


@pytest.mark.parametrize("kind", ["job", "service"])
def test_dry_run_stores_nothing(
    kind: str, job: Path, jobs: KubernetesJobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "service":
        job.write_text(yaml.safe_dump(SERVICE))
    before = objects(jobs.kube)
    file = cluster_specs.write(
        tmp_path,
        namespace=NAMESPACE,
        submission={"ttl": "5m", "active_deadline": "1h", "backoff_limit": 1},
    )
    assert main(["submit", str(job), "--cluster", str(file), "--dry-run", "server", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["status"]) == (kind, None)
    assert objects(jobs.kube) == before


def test_missing_objects_are_listed(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cluster_specs.write(
        tmp_path,
        namespace=NAMESPACE,
        secrets={"env": ["rayfuse-credentials", "none"]},
        image_pull_secrets=["registry"],
        volumes={"runs": {"pvc": "runs", "path": "/mnt/runs"}},
        service_account="trainer",
        kueue_queue="team-a",
    )
    before = objects(jobs.kube)
    for options in (["--dry-run", "server"], []):
        assert main(["submit", str(job), "--cluster", str(file), *options]) == 2
        lines = capsys.readouterr().err.removeprefix("error: ").splitlines()
        assert [line.removeprefix(f"{file}: ").split(";")[0] for line in lines] == [
            f"secrets.env.1: no Secret none in namespace {NAMESPACE}",
            f"image_pull_secrets.0: no Secret registry in namespace {NAMESPACE}",
            f"volumes.runs.pvc: no PersistentVolumeClaim runs in namespace {NAMESPACE}",
            f"service_account: no ServiceAccount trainer in namespace {NAMESPACE}",
            "kueue_queue: Kueue is not installed on this cluster, which has no LocalQueue",
        ]
    assert objects(jobs.kube) == before
    file = cluster_specs.write(tmp_path, namespace="nope")
    assert main(["submit", str(job), "--cluster", str(file), "--dry-run", "server"]) == 2
    assert f"{file}: namespace: nope does not exist; create it with `kubectl" in capsys.readouterr().err


def test_errors_of_the_server_have_paths_of_the_cluster_spec(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path
) -> None:
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    prepared = prepare_submission(job, file, name="wrong")
    group = prepared.manifests[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["replicas"] = "two"
    with pytest.raises(SpecError, match=rf"^{file}: workers\.cpu\.max: .*workerGroupSpecs\[0\]\.replicas\)$"):
        prepared.dry_run()


def test_errors_of_the_server_are_listed_by_field(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path
) -> None:
    _, ray_job = wrong = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "wrong")
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"
    with pytest.raises(
        SpecError, match=r"^RayJob wrong: spec\.rayClusterSpec\.workerGroupSpecs\[0\]\.replicas: "
    ):
        jobs.submit(wrong)
    assert jobs.kube.find("RayJob", "wrong") is None


def test_an_outdated_operator_is_rejected(job: Path, jobs: KubernetesJobClient, tmp_path: Path) -> None:
    """The API server drops fields that its schema does not have, which must not disable authentication."""
    _, ray_job = newer = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "newer")
    ray_job["spec"]["rayClusterSpec"]["fromTheFuture"] = {"mode": "token"}
    with pytest.raises(
        UnavailableError, match=r"does not support spec\.rayClusterSpec\.fromTheFuture; install KubeRay"
    ):
        jobs.submit(newer)
    assert jobs.kube.find("RayJob", "newer") is None


class ConflictingClient(KubeClient):
    """A cluster in which another client creates a ConfigMap of the same name right after the RayJob."""

    def create(self, manifest: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        made = super().create(manifest, dry_run)
        if not dry_run:
            super().create({**self.theirs, "data": {"job.yaml": "kind: job"}})
        return made


def test_a_job_is_deleted_if_its_configmap_fails(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path
) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "alone")
    name = sent[0]["metadata"]["name"]
    before = objects(jobs.kube)
    kube = ConflictingClient.connect(NAMESPACE)
    kube.theirs = sent[0]
    with pytest.raises(SpecError, match=f"ConfigMap {name}: conflict with a concurrent change: "):
        KubernetesJobClient(kube).submit(sent)
    jobs.kube.delete("ConfigMap", name)
    wait_for(lambda: objects(jobs.kube) == before)


def test_nothing_is_created_if_the_configmap_is_rejected(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path
) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "taken")
    jobs.kube.create({**sent[0], "data": {"job.yaml": "kind: job"}})
    before = objects(jobs.kube)
    with pytest.raises(SpecError, match=f"ConfigMap {sent[0]['metadata']['name']}: conflict with a "):
        jobs.submit(sent)
    assert objects(jobs.kube) == before
    jobs.kube.delete("ConfigMap", sent[0]["metadata"]["name"])


def test_services_of_others_are_not_changed(jobs: KubernetesJobClient, tmp_path: Path) -> None:
    spec = tmp_path / "service.yaml"
    spec.write_text(yaml.safe_dump(SERVICE | {"name": "theirs"}))
    spec_map, service = rendered(spec, cluster_specs.write(tmp_path, namespace=NAMESPACE), "theirs")
    unlabelled = {**service, "metadata": {**service["metadata"], "labels": {}}}
    unlabelled["spec"] = {**service["spec"], "suspend": True}
    made = jobs.kube.create(unlabelled)
    with pytest.raises(
        SpecError, match="RayService theirs: exists and is not managed by Rayfuse; choose another name"
    ):
        jobs.submit([spec_map, service])
    with pytest.raises(SpecError, match="theirs: no such job; "):
        jobs.get("theirs")
    found = jobs.kube.find("RayService", "theirs")
    assert found
    assert found["metadata"]["generation"] == made["metadata"]["generation"]
    jobs.kube.delete("RayService", "theirs")


def test_unknown_job(jobs: KubernetesJobClient) -> None:
    for call in (jobs.get, jobs.stop, lambda name: list(jobs.logs(name))):
        with pytest.raises(SpecError, match="nope: no such job; "):
            call("nope")


def test_jobs_of_kueue_are_stopped_through_kueue(
    kubeconfig: Path, jobs: KubernetesJobClient, job: Path, tmp_path: Path
) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE, kueue_queue="team-a"), "queued")
    sent[1]["spec"]["suspend"] = True  # as Kueue's webhook does
    jobs.submit(sent)
    uid = jobs.kube.find("RayJob", "queued")["metadata"]["uid"]
    assert jobs.get("queued").message == (
        "queued by Kueue; queue team-a: Kueue has no Workload for it; check that Kueue is running and has ray.io/rayjob in "
        "its integrations"
    )
    with kueue(), Client(namespace=NAMESPACE) as client:
        workload = {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "Workload",
            "metadata": {"name": "queued", "namespace": NAMESPACE, "labels": {"kueue.x-k8s.io/job-uid": uid}},
            "spec": {"active": True},
            "status": {
                "conditions": [{"type": "QuotaReserved", "status": "False", "message": "no quota for cpu"}]
            },
        }
        client.create(WORKLOAD(**workload))
        assert jobs.get("queued").message == "queued by Kueue; queue team-a: no quota for cpu"
        jobs.suspend(jobs.find("queued"))
        assert client.get(WORKLOAD, "queued")["spec"] == {"active": False}
    jobs.kube.delete("RayJob", "queued")


@contextmanager
def kueue() -> Iterator[None]:
    """Return the part of Kueue's schema that `stop` uses, for the duration of the context."""
    versions = {"name": "v1beta1", "served": True, "storage": True}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "workloads.kueue.x-k8s.io"},
        "spec": {
            "group": "kueue.x-k8s.io",
            "scope": "Namespaced",
            "names": names,
            "versions": [{**versions, "schema": schema}],
        },
    }
    with Client() as client:
        client.create(DEFINITION(**body))
        try:
            wait_for(lambda: is_established(client.get(DEFINITION, "workloads.kueue.x-k8s.io")))
            yield
        finally:
            client.delete(DEFINITION, "workloads.kueue.x-k8s.io")


def is_established(definition: dict[str, Any]) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def test_control_c_leaves_the_job_running(job: Path, jobs: KubernetesJobClient, tmp_path: Path) -> None:
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    command = [*RAYFUSE, "submit", str(job), "--cluster", str(file), "--name", "patient", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout
        assert next(waiting.stdout) == f"patient: submitted to namespace {NAMESPACE}\n"
        assert next(waiting.stdout).startswith("patient: PENDING  KubeRay's operator has not seen it yet; ")
        os.kill(waiting.pid, signal.SIGINT)
        _, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 130
    assert err == (
        "error: interrupted; patient keeps running\n"
        f"logs       rayfuse jobs logs patient --follow --cluster {file}\n"
        f"stop       rayfuse jobs stop patient --cluster {file}\n"
    )
    assert jobs.get("patient").status == "PENDING"
    jobs.kube.delete("RayJob", "patient")


def test_waiting_times_out(
    job: Path, jobs: KubernetesJobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    command = ["submit", str(job), "--cluster", str(file), "--name", "late", "--follow", "--timeout", "0.1"]
    assert main(command) == 1
    assert "late: PENDING after 0.1 s; it keeps running\nlogs " in capsys.readouterr().err
    jobs.kube.delete("RayJob", "late")


def test_a_wrong_token_is_rejected(kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    server = content["clusters"][0]["cluster"]
    server["certificate-authority"] = str(kubeconfig.parent / server["certificate-authority"])
    content["users"][0]["user"] = {"token": "wrong"}
    (tmp_path / "config").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(UnavailableError, match="authentication to Kubernetes .* failed: .*; log in again"):
        KubernetesJobClient.connect().list()

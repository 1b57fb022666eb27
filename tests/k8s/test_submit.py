"""What `rayfuse submit` asks of an API server: nothing for a wrong spec, and both objects or neither."""

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
from lightkube.resources.core_v1 import Namespace
from waiting import wait_for

from rayfuse.cli import main
from rayfuse.cluster import manifests
from rayfuse.cluster.kube import Kube
from rayfuse.cluster.kubernetes import KubernetesJobs
from rayfuse.cluster.travel import Destination, pack
from rayfuse.errors import NotReachable, SpecError
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
def jobs(kubeconfig: Path) -> KubernetesJobs:
    """A namespace that the stand-in for the operator does not look at."""
    with Client() as client:
        client.apply(Namespace(metadata=ObjectMeta(name=NAMESPACE)), field_manager="test")
    return KubernetesJobs.connect(NAMESPACE)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    content = tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def objects(kube: Kube) -> set[str]:
    """Everything of the kinds that a submission makes, by unique id."""
    kinds = ("RayJob", "RayService", "ConfigMap")
    return {item["metadata"]["uid"] for kind in kinds for item in kube.list(kind)}


def rendered(spec: Path, cluster_file: Path, name: str) -> list[dict[str, Any]]:
    cluster = load_spec(cluster_file, Cluster)
    return manifests.render(
        pack(str(spec), (), Destination.kubernetes(cluster, "c.yaml")), cluster, "c.yaml", name
    )


@pytest.mark.parametrize("wrong", cluster_specs.WRONG)
def test_a_wrong_cluster_spec_is_never_sent(
    wrong: str, job: Path, jobs: KubernetesJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, says = cluster_specs.WRONG[wrong]
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_specs.changed({"namespace": NAMESPACE} | changes)))
    before = objects(jobs.kube)
    assert main(["submit", str(job), "--cluster", str(file)]) == 2
    assert f"error: {file}: {says}" in capsys.readouterr().err
    assert objects(jobs.kube) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "n" * 48], "--name: "),
        (
            ["--set", "compute={workers: 16, cpus_per_worker: 2}"],
            "compute.workers: 16 of 2 CPUs each do not fit",
        ),
        (["--set", "data.train=rows.jsonl"], "data.train: 'rows.jsonl' is on this machine"),
        (["--set", "data.train=${ROWS}"], "the environment variable ROWS is not set"),
        (["--set", "output.storage=/runs"], "output.storage: /runs is in a pod"),
    ],
)
def test_a_wrong_job_is_never_sent(
    options: list[str], says: str, job: Path, jobs: KubernetesJobs, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = objects(jobs.kube)
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    assert main(["submit", str(job), "--cluster", str(file), *options]) == 2
    assert says in capsys.readouterr().err
    assert objects(jobs.kube) == before


@pytest.mark.parametrize("kind", ["job", "service"])
def test_the_server_can_check_and_keep_nothing(
    kind: str, job: Path, jobs: KubernetesJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "service":
        job.write_text(yaml.safe_dump(SERVICE))
    before = objects(jobs.kube)
    file = cluster_specs.write(
        tmp_path, queue="team-a", submission={"ttl": "5m", "deadline": "1h", "retries": 1}
    )
    assert main(["submit", str(job), "--cluster", str(file), "--dry-run", "server", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["status"]) == (kind, None)
    assert objects(jobs.kube) == before


def test_what_the_server_finds_wrong_is_said_by_field(
    job: Path, jobs: KubernetesJobs, tmp_path: Path
) -> None:
    _, ray_job = wrong = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "wrong")
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"
    with pytest.raises(
        SpecError, match=r"^RayJob wrong: spec\.rayClusterSpec\.workerGroupSpecs\[0\]\.replicas: "
    ):
        jobs.send(wrong)
    assert jobs.kube.find("RayJob", "wrong") is None


def test_an_operator_that_is_too_old_is_noticed(job: Path, jobs: KubernetesJobs, tmp_path: Path) -> None:
    """The API server drops what the schema does not have, and authentication must not be lost that way."""
    _, ray_job = newer = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "newer")
    ray_job["spec"]["rayClusterSpec"]["fromTheFuture"] = {"mode": "token"}
    with pytest.raises(
        NotReachable, match=r"does not know spec\.rayClusterSpec\.fromTheFuture; install KubeRay"
    ):
        jobs.send(newer)
    assert jobs.kube.find("RayJob", "newer") is None


class Overtaken(Kube):
    """A cluster where somebody else makes a ConfigMap of the same name right after the RayJob was made."""

    def create(self, manifest: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        made = super().create(manifest, dry_run)
        if not dry_run:
            super().create({**self.theirs, "data": {"job.yaml": "kind: job"}})
        return made


def test_without_its_spec_a_job_does_not_stay(job: Path, jobs: KubernetesJobs, tmp_path: Path) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "alone")
    name = sent[0]["metadata"]["name"]
    before = objects(jobs.kube)
    kube = Overtaken.connect(NAMESPACE)
    kube.theirs = sent[0]
    with pytest.raises(SpecError, match=f"ConfigMap {name}: somebody else has changed it: "):
        KubernetesJobs(kube).send(sent)
    jobs.kube.delete("ConfigMap", name)
    wait_for(lambda: objects(jobs.kube) == before)


def test_nothing_is_made_where_the_spec_would_not_be_taken(
    job: Path, jobs: KubernetesJobs, tmp_path: Path
) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE), "taken")
    jobs.kube.create({**sent[0], "data": {"job.yaml": "kind: job"}})
    before = objects(jobs.kube)
    with pytest.raises(SpecError, match=f"ConfigMap {sent[0]['metadata']['name']}: somebody else "):
        jobs.send(sent)
    assert objects(jobs.kube) == before
    jobs.kube.delete("ConfigMap", sent[0]["metadata"]["name"])


def test_a_service_that_is_not_ours_is_left_alone(jobs: KubernetesJobs, tmp_path: Path) -> None:
    spec = tmp_path / "service.yaml"
    spec.write_text(yaml.safe_dump(SERVICE | {"name": "theirs"}))
    spec_map, service = rendered(spec, cluster_specs.write(tmp_path, namespace=NAMESPACE), "theirs")
    unlabelled = {**service, "metadata": {**service["metadata"], "labels": {}}}
    unlabelled["spec"] = {**service["spec"], "suspend": True}
    made = jobs.kube.create(unlabelled)
    with pytest.raises(
        SpecError, match="RayService theirs: is there and not from Rayfuse; choose another --name"
    ):
        jobs.send([spec_map, service])
    with pytest.raises(SpecError, match="theirs: no such job; "):
        jobs.get("theirs")
    found = jobs.kube.find("RayService", "theirs")
    assert found
    assert found["metadata"]["generation"] == made["metadata"]["generation"]
    jobs.kube.delete("RayService", "theirs")


def test_a_job_that_is_not_there(jobs: KubernetesJobs) -> None:
    for ask in (jobs.get, jobs.stop, lambda name: list(jobs.logs(name))):
        with pytest.raises(SpecError, match="nope: no such job; "):
            ask("nope")


def test_where_kueue_admits_jobs_it_is_the_one_to_stop_them(
    kubeconfig: Path, jobs: KubernetesJobs, job: Path, tmp_path: Path
) -> None:
    sent = rendered(job, cluster_specs.write(tmp_path, namespace=NAMESPACE, queue="team-a"), "queued")
    sent[1]["spec"]["suspend"] = True  # as Kueue's webhook does
    jobs.send(sent)
    uid = jobs.kube.find("RayJob", "queued")["metadata"]["uid"]
    with pytest.raises(NotReachable, match="knows no Workload"):
        jobs._suspend(jobs._find("queued"))
    with kueue(), Client(namespace=NAMESPACE) as client:
        workload = {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "Workload",
            "metadata": {"name": "queued", "namespace": NAMESPACE, "labels": {"kueue.x-k8s.io/job-uid": uid}},
            "spec": {"active": True},
        }
        client.create(WORKLOAD(**workload))
        jobs._suspend(jobs._find("queued"))
        assert client.get(WORKLOAD, "queued")["spec"] == {"active": False}
    jobs.kube.delete("RayJob", "queued")


@contextmanager
def kueue() -> Iterator[None]:
    """The part of Kueue's schema that `stop` touches, as long as this lasts."""
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


def test_control_c_leaves_the_job_running(job: Path, jobs: KubernetesJobs, tmp_path: Path) -> None:
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    command = [*RAYFUSE, "submit", str(job), "--cluster", str(file), "--name", "patient", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout
        assert next(waiting.stdout) == f"patient: submitted to namespace {NAMESPACE}\n"
        assert next(waiting.stdout) == "patient: PENDING\n"
        os.kill(waiting.pid, signal.SIGINT)
        _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert err == (
        "error: patient goes on without this command\n"
        f"log        rayfuse jobs logs patient --follow --cluster {file}\n"
        f"stop       rayfuse jobs stop patient --cluster {file}\n"
    )
    assert jobs.get("patient").status == "PENDING"
    jobs.kube.delete("RayJob", "patient")


def test_waiting_has_an_end(
    job: Path, jobs: KubernetesJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cluster_specs.write(tmp_path, namespace=NAMESPACE)
    command = ["submit", str(job), "--cluster", str(file), "--name", "late", "--follow", "--timeout", "0.1"]
    assert main(command) == 1
    assert "late: still PENDING after 0.1 s, and goes on\nlog " in capsys.readouterr().err
    jobs.kube.delete("RayJob", "late")


def test_a_wrong_token_is_not_let_in(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    server = content["clusters"][0]["cluster"]
    server["certificate-authority"] = str(kubeconfig.parent / server["certificate-authority"])
    content["users"][0]["user"] = {"token": "wrong"}
    (tmp_path / "config").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(NotReachable, match="does not know you: .*; log in again"):
        KubernetesJobs.connect().list()

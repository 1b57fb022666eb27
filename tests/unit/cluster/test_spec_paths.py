"""Fields that the API server rejects, as paths of the cluster spec."""

from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.cluster.kube_errors import RejectedObjectError
from rayfuse.cluster.manifests import render
from rayfuse.cluster.spec_paths import find_spec_path, to_spec_error
from rayfuse.cluster.submission import TargetEnvironment, build_bundle
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import load_spec


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    content = tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    volumes = {"runs": {"pvc": "runs", "path": "/mnt/runs"}}
    cluster = load_spec(cluster_specs.write(tmp_path, volumes=volumes), Cluster)
    bundle = build_bundle(str(tmp_path / "job.yaml"), {}, TargetEnvironment.kubernetes(cluster, "c.yaml"))
    return render(bundle, cluster, "c.yaml")[1]


HEAD, WORKER = "spec.rayClusterSpec.headGroupSpec", "spec.rayClusterSpec.workerGroupSpecs[0]"


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("metadata.namespace", "namespace"),
        ("metadata.labels", "kueue_queue"),
        ("spec.backoffLimit", "submission.backoff_limit"),
        ("spec.ttlSecondsAfterFinished", "submission.ttl"),
        ("spec.rayClusterSpec.rayVersion", "ray_version"),
        (f"{HEAD}.template.spec.containers[0].resources.limits.cpu", "head.cpu"),
        (f"{HEAD}.rayStartParams.port", "head.ray.port"),
        (f"{WORKER}.groupName", "workers.cpu"),
        (f"{WORKER}.replicas", "workers.cpu.max"),
        (f"{WORKER}.minReplicas", "workers.cpu.min"),
        (f"{WORKER}.template.spec.containers[0].resources.requests.memory", "workers.cpu.memory"),
        (f"{WORKER}.template.spec.containers[0].resources.limits[nvidia.com/gpu]", "workers.cpu.gpus"),
        (f"{WORKER}.template.spec.nodeSelector", "workers.cpu.node_selector"),
        (f"{WORKER}.template.spec.tolerations[2].effect", "workers.cpu.tolerations.2.effect"),
        (f"{WORKER}.template.spec.containers[0].image", "image"),
        (f"{WORKER}.template.spec.containers[0].env[1].value", "env.MLFLOW_TRACKING_URI"),
        (f"{WORKER}.template.spec.containers[0].envFrom[0].secretRef.name", "secrets.env.0"),
        (f"{WORKER}.template.spec.containers[0].volumeMounts[1].mountPath", "volumes.runs.path"),
        (f"{WORKER}.template.spec.volumes[1].persistentVolumeClaim", "volumes.runs.pvc"),
        (f"{WORKER}.template.spec.serviceAccountName", "service_account"),
        ("spec.submitterPodTemplate.spec.containers[0].image", "image"),
        ("spec.entrypoint", None),
        (f"{HEAD}.serviceType", None),
    ],
)
def test_paths(manifest: dict[str, Any], field: str, path: str | None) -> None:
    assert find_spec_path(field, manifest) == path


def test_errors_have_both_paths(manifest: dict[str, Any]) -> None:
    causes = [(f"{WORKER}.replicas", "must be an integer"), ("spec.entrypoint", "too long")]
    error = to_spec_error(RejectedObjectError("RayJob x: …", causes), manifest, "c.yaml")
    assert str(error).splitlines() == [
        f"c.yaml: workers.cpu.max: must be an integer (RayJob {WORKER}.replicas)",
        "RayJob: spec.entrypoint: too long",
    ]

"""Rendered objects of specs for KubeRay."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.cluster.manifests import object_name, render, to_yaml
from rayfuse.cluster.submission import SubmissionBundle, TargetEnvironment, build_bundle
from rayfuse.errors import SpecError
from rayfuse.ray_patches import SERVE_ENV
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import load_spec

SERVICE = {
    "kind": "service",
    "name": "tiny",
    "model": "models:/tiny@champion",
    "port": 9000,
    "auth": {"keys": "${RAYFUSE_API_KEYS:-}"},
}

Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def job() -> dict[str, Any]:
    return tiny_jobs.job_content(Path("/data")) | {"output": {"storage": "s3://bucket/runs"}}


@pytest.fixture
def rendered(tmp_path: Path) -> Render:
    """Render a spec's content for the valid cluster spec with changes."""

    def make(content: dict[str, Any], name: str | None = None, **cluster: Any) -> list[dict[str, Any]]:
        spec = tmp_path / "spec.yaml"
        spec.write_text(yaml.safe_dump(content))
        file = cluster_specs.write(tmp_path, **cluster)
        loaded = load_spec(file, Cluster)
        return render(
            build_bundle(str(spec), (), TargetEnvironment.kubernetes(loaded, "c.yaml")),
            loaded,
            "c.yaml",
            name,
        )

    return make


def groups(ray_job: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    found = ray_job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    return {g["groupName"]: (g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in found}


def test_a_job_is_a_rayjob_and_a_configmap(rendered: Render, job: dict[str, Any]) -> None:
    spec_map, ray_job = rendered(job)
    name = ray_job["metadata"]["name"]
    assert re.fullmatch(r"tiny-[a-z0-9]{5}", name)
    assert ray_job["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "rayfuse", "rayfuse/kind": "job", "rayfuse/name": "tiny",
    }  # fmt: skip
    assert ray_job["spec"]["entrypoint"] == "rayfuse train /etc/rayfuse/spec/job.yaml"
    assert ray_job["spec"]["metadata"] == {"rayfuse/kind": "job", "rayfuse/name": "tiny"}
    assert ray_job["spec"]["shutdownAfterJobFinishes"] is True
    assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert re.fullmatch(rf"{name}-spec-[0-9a-f]{{10}}", spec_map["metadata"]["name"])
    assert yaml.safe_load(spec_map["data"]["job.yaml"]) == job
    assert spec_map["immutable"] is True


def test_pods_have_the_options_of_the_cluster_spec(rendered: Render, job: dict[str, Any]) -> None:
    _, ray_job = rendered(
        job,
        workers__cpu__gpus=2,
        workers__cpu__accelerator="H100",
        workers__cpu__node_selector={"pool": "gpu"},
        workers__cpu__tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        workers__cpu__ray={
            "object-store-memory": 10**9,
            "include-log-monitor": False,
            "resources": '{"tape": 1}',
        },
        volumes__runs={"pvc": "rayfuse-runs", "path": "/mnt/runs"},
        env__DATA="s3://bucket/data",
        service_account="trainer",
        image_pull_secrets=["registry"],
    )
    group = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    container = pod["containers"][0]
    amounts = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert container["env"] == [
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"},
        {"name": "DATA", "value": "s3://bucket/data"},
    ]
    assert container["envFrom"] == [{"secretRef": {"name": "rayfuse-credentials"}}]
    assert group["labels"] == {"ray.io/accelerator-type": "H100"}
    assert group["rayStartParams"] == {
        "object-store-memory": "1000000000",
        "include-log-monitor": "false",
        "resources": r'"{\"tape\": 1}"',
    }
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]} == {
        "rayfuse-spec": None,
        "runs": {"claimName": "rayfuse-runs"},
    }
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/etc/rayfuse/spec", "/mnt/runs"}


def test_no_pod_runs_as_root(rendered: Render, job: dict[str, Any]) -> None:
    _, ray_job = rendered(job)
    cluster = ray_job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [ray_job["spec"]["submitterPodTemplate"], *(group["template"] for group in templates)]
    assert len(pods) == 3
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_cluster_has_the_size_of_its_job(rendered: Render, job: dict[str, Any]) -> None:
    _, ray_job = rendered(job | {"compute": {"workers": 6}})
    assert groups(ray_job) == {"cpu": (2, 2, 2)}
    assert ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert "enableInTreeAutoscaling" not in ray_job["spec"]["rayClusterSpec"]
    _, ray_job = rendered(job | {"compute": {"workers": 2}}, workers={})
    assert groups(ray_job) == {}
    assert ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {}
    with pytest.raises(
        SpecError, match=r"spec\.yaml: compute\.workers: 16 workers with 2 CPUs each do not fit"
    ):
        rendered(job | {"compute": {"workers": 16, "cpus_per_worker": 2}})


def test_how_a_job_is_submitted(rendered: Render, job: dict[str, Any]) -> None:
    options = {"mode": "SidecarMode", "ttl": "90.5s", "active_deadline": "2h", "backoff_limit": 2}
    _, ray_job = rendered(job, submission=options, kueue_queue="team-a")
    spec = ray_job["spec"]
    assert (spec["submissionMode"], spec["backoffLimit"]) == ("SidecarMode", 2)
    assert (spec["ttlSecondsAfterFinished"], spec["activeDeadlineSeconds"]) == (91, 7200)
    assert "submitterPodTemplate" not in spec  # the operator rejects it in this mode
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"


def test_the_proxies_of_a_service_are_configured(rendered: Render) -> None:
    """Serve starts one on the head and on each node with replicas."""
    _, service = rendered(SERVICE)
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert variables.items() >= SERVE_ENV.items()


def test_a_service_has_its_name_and_autoscaling(rendered: Render) -> None:
    content = SERVICE | {"replicas": {"min": 1, "max": 8, "num_cpus": 2}}
    spec_map, service = rendered(content)
    assert service["metadata"]["name"] == "tiny"
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    digest = spec_map["metadata"]["name"].removeprefix("tiny-spec-")
    assert config == {
        "http_options": {"host": "0.0.0.0", "port": 9000},
        "applications": [
            {
                "name": "tiny",
                "route_prefix": "/tiny",
                "import_path": "rayfuse.serving.endpoint:from_spec",
                "args": {"spec": "/etc/rayfuse/spec/service.yaml", "digest": digest},
            }
        ],
    }
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert {"name": "serve", "containerPort": 9000} in cluster["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]["ports"]
    group = cluster["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 1, 4)
    with pytest.raises(SpecError, match=r"replicas\.max: 9 replicas with 2 CPUs each do not fit"):
        rendered(content | {"replicas": {"min": 1, "max": 9, "num_cpus": 2}})


def test_a_changed_service_has_a_new_configmap(rendered: Render) -> None:
    """A new name of the ConfigMap makes KubeRay start a new cluster; an equal spec changes nothing."""
    first, again, other = (
        rendered(SERVICE),
        rendered(SERVICE),
        rendered(SERVICE | {"limits": {"max_queued_requests": 9}}),
    )
    assert first == again
    assert first[0]["metadata"]["name"] != other[0]["metadata"]["name"]
    assert first[1]["spec"]["rayClusterConfig"] != other[1]["spec"]["rayClusterConfig"]


@pytest.mark.parametrize(
    ("kind", "name", "pattern"),
    [
        ("job", "tiny", r"tiny-\w{5}"),
        ("job", "Digit_Arithmetic.v2", r"digit-arithmetic-v2-\w{5}"),
        ("job", "2d", r"job-2d-\w{5}"),
        ("sweep", "7", r"sweep-7-\w{5}"),
        ("job", "a" * 63, r"a{41}-\w{5}"),
        ("job", "a" * 40 + "-b", r"a{40}-\w{5}"),
    ],
)
def test_job_names_are_valid_for_kuberay(kind: str, name: str, pattern: str) -> None:
    names = {object_name(SubmissionBundle(kind, name, "s.yaml", {}), None) for _ in range(20)}
    assert all(re.fullmatch(pattern, found) and len(found) <= 47 for found in names)
    assert len(names) > 1


@pytest.mark.parametrize("name", ["a" * 48, "Tiny", "2d", "tiny-", "a.b", ""])
def test_invalid_names_are_rejected(rendered: Render, job: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError, match=r"^name: .* is not a name on a cluster; use at most 47 of a-z"):
        rendered(job, name)
    if name:
        with pytest.raises(SpecError, match=r"spec\.yaml: name: "):
            rendered(SERVICE | {"name": name.strip("-") + "_x"})
    assert rendered(job, "a" * 47)[1]["metadata"]["name"] == "a" * 47


def test_yaml_is_readable(rendered: Render, job: dict[str, Any]) -> None:
    manifests = rendered(job)
    text = to_yaml(manifests)
    assert list(yaml.safe_load_all(text)) == manifests
    assert "\n  job.yaml: |\n    " in text
    assert "&id" not in text


def test_specs_that_no_configmap_holds(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    cluster = load_spec(cluster_specs.write(tmp_path), Cluster)
    bundle = build_bundle(str(tmp_path / "job.yaml"), {}, TargetEnvironment.kubernetes(cluster, "c.yaml"))
    large = replace(bundle, files={"sweep.yaml": "a" * 600_000, "job.yaml": "b" * 600_000})
    with pytest.raises(SpecError, match="1200000 bytes, and Kubernetes stores at most 1 MiB in a ConfigMap"):
        render(large, cluster, "c.yaml")

"""Details of a status that are in other objects: why a job is pending, and which version of a service is serving."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import yaml

from rayfuse.cluster.kube import KubeClient
from rayfuse.cluster.kube_errors import ForbiddenError, Json, NoSuchResourceError
from rayfuse.cluster.manifests import QUEUE_LABEL, SPEC_VOLUME
from rayfuse.cluster.pod_status import event_reason, pending_reason, starting_pods
from rayfuse.formatting import first_line

OPERATOR_PODS = "kubectl get pods --all-namespaces --selector app.kubernetes.io/name=kuberay-operator"
"""Command that shows KubeRay's operator."""

JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""Label of a Workload of Kueue with the UID of its RayJob or RayService."""

_MAX_MESSAGE_LENGTH = 300
_SLOTS = ("pendingServiceStatus", "activeServiceStatus")


def explain_pending(kube: KubeClient, manifest: Json) -> str:
    """Return why a pending RayJob or RayService waits, and what to do about it; "" where nothing is in its way."""
    if _is_queued(manifest):
        return _explain_queue(kube, manifest)
    if not manifest.get("status"):
        return f"KubeRay's operator has not seen it yet; if this stays, check that it is running: {OPERATOR_PODS}"
    pods = [*submitter_pods(kube, manifest), *_ray_pods(kube, manifest)]
    return pending_reason(pods) or event_reason(_events(kube, manifest, pods))


def serving_model(kube: KubeClient, service: Json) -> str:
    """Return the model in the spec of a service that is serving, as it is in its ConfigMap; "" where it is unknown."""
    active = (service.get("status") or {}).get("activeServiceStatus") or {}
    cluster = kube.find("RayCluster", active.get("rayClusterName", ""))
    if cluster is None:
        return ""
    volumes = cluster["spec"]["headGroupSpec"]["template"]["spec"].get("volumes") or []
    names = [volume["configMap"]["name"] for volume in volumes if volume["name"] == SPEC_VOLUME]
    spec_map = kube.find("ConfigMap", names[0]) if names else None
    content = yaml.safe_load(spec_map["data"]["service.yaml"]) if spec_map else {}
    return str(content.get("model", ""))


def submitter_pods(kube: KubeClient, manifest: Json) -> Sequence[Json]:
    """Return the pods that submit a RayJob in K8sJobMode."""
    return kube.list("Pod", {"batch.kubernetes.io/job-name": manifest["metadata"]["name"]})


def cluster_pods(kube: KubeClient, cluster: str, node: str | None = None) -> Sequence[Json]:
    """Return the pods of a RayCluster, of all nodes or of those of a type: head or worker."""
    labels: Mapping[str, str] = {"ray.io/node-type": node} if node else {}
    return kube.list("Pod", {"ray.io/cluster": cluster, **labels})


def find_workloads(kube: KubeClient, manifest: Json) -> Sequence[Json]:
    """Return the Workload by which Kueue manages a RayJob or RayService; none where it has no queue."""
    if QUEUE_LABEL not in (manifest["metadata"].get("labels") or {}):
        return []
    try:
        return kube.list("Workload", {JOB_UID_LABEL: manifest["metadata"]["uid"]})
    except NoSuchResourceError:
        return []


def _is_queued(manifest: Json) -> bool:
    own = (manifest.get("status") or {}).get("jobDeploymentStatus") or ""
    is_suspended = own in ("Suspending", "Suspended") or (not own and manifest["spec"].get("suspend"))
    return bool(is_suspended) and QUEUE_LABEL in (manifest["metadata"].get("labels") or {})


def _explain_queue(kube: KubeClient, manifest: Json) -> str:
    queue = manifest["metadata"]["labels"][QUEUE_LABEL]
    try:
        workloads = find_workloads(kube, manifest)
    except ForbiddenError:
        return f"queue {queue}"
    if not workloads:
        return (
            f"queue {queue}: Kueue has no Workload for it; check that Kueue is running and has ray.io/rayjob in its "
            "integrations"
        )
    messages = [
        condition.get("message") or condition.get("reason") or ""
        for condition in (workloads[0].get("status") or {}).get("conditions") or []
        if condition.get("status") == "False"
    ]
    return f"queue {queue}" + (f": {first_line(messages[0], _MAX_MESSAGE_LENGTH)}" if messages else "")


def _ray_clusters(manifest: Json) -> list[str]:
    status = manifest.get("status") or {}
    slots = [status, *(status.get(slot) or {} for slot in _SLOTS)]
    return [slot["rayClusterName"] for slot in slots if slot.get("rayClusterName")]


def _ray_pods(kube: KubeClient, manifest: Json) -> Sequence[Json]:
    """Return the pods of the newest cluster, the head first: workers wait for it."""
    names = _ray_clusters(manifest)
    pods = cluster_pods(kube, names[0]) if names else []
    return sorted(
        pods, key=lambda pod: (pod["metadata"].get("labels") or {}).get("ray.io/node-type") != "head"
    )


def _events(kube: KubeClient, manifest: Json, pods: Sequence[Json]) -> Iterator[Json]:
    """Yield the events of a RayJob or RayService, of its cluster and of its pods that have not started."""
    names = (manifest["metadata"]["name"], *_ray_clusters(manifest)[:1], *starting_pods(pods))
    for name in names:
        with suppress(ForbiddenError):
            yield from kube.list("Event", fields={"involvedObject.name": name})

"""Paths in a cluster spec of the fields of its manifests, for the errors of the API server."""

import re
from typing import Any

from rayfuse.cluster.kube_errors import RejectedObjectError
from rayfuse.errors import SpecError

Json = dict[str, Any]

_TOP_LEVEL = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    "metadata.labels": "kueue_queue",
    "spec.activeDeadlineSeconds": "submission.active_deadline",
    "spec.backoffLimit": "submission.backoff_limit",
    "spec.shutdownAfterJobFinishes": "submission.shutdown",
    "spec.submissionMode": "submission.mode",
    "spec.ttlSecondsAfterFinished": "submission.ttl",
}
_CLUSTER = re.compile(r"spec\.(?:rayClusterSpec|rayClusterConfig)\.(.*)")
_GROUP = re.compile(r"(?:headGroupSpec|workerGroupSpecs\[(\d+)\])\.(.*)")
_POD = re.compile(r"(?:spec\.submitterPodTemplate|template)\.spec\.(.*)")
_GROUP_FIELDS = (
    (r"template\.spec\.containers\[0\]\.resources\.\w+\.(cpu|memory)\b.*", r"\1"),
    (r"template\.spec\.containers\[0\]\.resources\.\w+\W*nvidia.*", "gpus"),
    (r"template\.spec\.nodeSelector.*", "node_selector"),
    (r"template\.spec\.tolerations\[(\d+)\](.*)", r"tolerations.\1\2"),
    (r"rayStartParams\.([a-z-]+)", r"ray.\1"),
    (r"minReplicas", "min"),
    (r"(?:maxR|r)eplicas", "max"),
    (r"labels.*", "accelerator"),
)
_POD_FIELDS = (
    (r"containers\[0\]\.image", "image"),
    (r"containers\[0\]\.envFrom\[(\d+)\].*", r"secrets.env.\1"),
    (r"imagePullSecrets\[(\d+)\].*", r"image_pull_secrets.\1"),
    (r"serviceAccountName", "service_account"),
)
_NAMED_POD_FIELDS = (
    (r"containers\[0\]\.env\[(\d+)\].*", ("containers", 0, "env"), "env.{}"),
    (r"containers\[0\]\.volumeMounts\[(\d+)\].*", ("containers", 0, "volumeMounts"), "volumes.{}.path"),
    (r"volumes\[(\d+)\].*", ("volumes",), "volumes.{}.pvc"),
)


def to_spec_error(error: RejectedObjectError, manifest: Json, cluster_file: str) -> SpecError:
    """Return the error of the API server for a manifest with the paths in the cluster spec that its fields come from."""
    if not error.causes:
        return error
    kind, lines = manifest["kind"], []
    for field, reason in error.causes:
        path = find_spec_path(field, manifest)
        lines.append(
            f"{cluster_file}: {path}: {reason} ({kind} {field})" if path else f"{kind}: {field}: {reason}"
        )
    return SpecError("\n".join(lines))


def find_spec_path(field: str, manifest: Json) -> str | None:
    """Return the path in the cluster spec of a field of a RayJob or RayService; None for one that is not from there."""
    if known := _TOP_LEVEL.get(re.split(r"\[|(?<=labels)\.", field)[0]):
        return known
    inside = _CLUSTER.fullmatch(field)
    if inside is None:
        pod = _POD.fullmatch(field)
        return _pod_path(pod[1], manifest["spec"]["submitterPodTemplate"]) if pod else None
    if inside[1] == "rayVersion":
        return "ray_version"
    return _group_path(inside[1], manifest)


def _group_path(field: str, manifest: Json) -> str | None:
    match = _GROUP.fullmatch(field)
    if match is None:
        return None
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    group = cluster["headGroupSpec"] if match[1] is None else cluster["workerGroupSpecs"][int(match[1])]
    section = "head" if match[1] is None else f"workers.{group['groupName']}"
    if match[2] == "groupName":
        return section
    own = _replace(match[2], _GROUP_FIELDS)
    if own:
        return f"{section}.{own}"
    pod = _POD.fullmatch(match[2])
    return _pod_path(pod[1], group["template"]) if pod else None


def _pod_path(field: str, template: Json) -> str | None:
    for pattern, parents, path in _NAMED_POD_FIELDS:
        if match := re.fullmatch(pattern, field):
            node: Any = template["spec"]
            for parent in parents:
                node = node[parent]
            return path.format(node[int(match[1])]["name"])
    return _replace(field, _POD_FIELDS)


def _replace(field: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    return next(
        (match.expand(path) for pattern, path in patterns if (match := re.fullmatch(pattern, field))), None
    )

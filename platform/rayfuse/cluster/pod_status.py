"""Reasons of pods that do not start, from the JSON of their status and events."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rayfuse.formatting import first_line

Json = dict[str, Any]

_MAX_MESSAGE_LENGTH = 300
_WITHOUT_A_REASON = ("ContainerCreating", "PodInitializing")
"""Reasons of containers that mean no more than that they have not started."""

_USUAL_WARNINGS = ("Unhealthy",)
"""Reasons of warnings that pods have while they start: probes fail until Ray answers."""

_IMAGE_REMEDY = "check `image` and `image_pull_secrets` of the cluster spec"
_REMEDIES = {
    "Unschedulable": "add nodes, or lower the cpu, memory and gpus of the cluster spec",
    **dict.fromkeys(
        ("ErrImagePull", "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName"), _IMAGE_REMEDY
    ),
    "CreateContainerConfigError": "check `secrets.env` of the cluster spec",
    **dict.fromkeys(("FailedAttachVolume", "FailedMount"), "check `volumes` of the cluster spec"),
}
_CLAIM_REMEDY = "check the claims under `volumes` of the cluster spec"


def pending_reason(pods: Sequence[Json]) -> str:
    """Return why the first pending pod is not scheduled or a container of it not started, with a remedy; else ""."""
    for pod in pods:
        for condition in _obstacles(pod):
            return f"pod {pod['metadata']['name']}: {_describe(condition)}"
    return ""


def starting_pods(pods: Sequence[Json]) -> list[str]:
    """Return the names of the pods whose containers have not started, for a reason that is in their events."""
    return [
        pod["metadata"]["name"] for pod in pods if (pod.get("status") or {}).get("phase") in (None, "Pending")
    ]


def event_reason(events: Iterable[Json]) -> str:
    """Return the newest warning among events, with its object and a remedy; "" where there is none."""
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning" and event.get("reason") not in _USUAL_WARNINGS
    ]
    newest = max(warnings, key=_event_time, default=None)
    if newest is None:
        return ""
    involved = newest["involvedObject"]
    return f"{involved.get('kind', 'object').lower()} {involved.get('name')}: {_describe(newest)}"


def _obstacles(pod: Json) -> Iterator[Json]:
    """Yield the conditions and the states of containers that keep a pod from starting, the first in time first."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield condition
    for field in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(field) or []:
            waiting = (container.get("state") or {}).get("waiting")
            if waiting and waiting.get("reason") not in _WITHOUT_A_REASON:
                yield waiting


def _describe(found: Json) -> str:
    reason, message = found.get("reason") or "pending", found.get("message") or ""
    text = first_line(f"{reason}: {message}".rstrip(": "), _MAX_MESSAGE_LENGTH)
    remedy = _CLAIM_REMEDY if "persistentvolumeclaim" in message else _REMEDIES.get(reason)
    return f"{text.rstrip('.')}; {remedy}" if remedy else text


def _event_time(event: Json) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    )

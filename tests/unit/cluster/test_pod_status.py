"""Why pods do not start, as Kubernetes reports it."""

from typing import Any

import pytest

from rayfuse.cluster.pod_status import event_reason, pending_reason

FINE = {"metadata": {"name": "a"}, "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}
INITIALIZING = {"name": "ray-worker", "state": {"waiting": {"reason": "PodInitializing"}}}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"metadata": {"name": "b"}, "status": {"conditions": [condition]}}


def waiting(reason: str, message: str | None = None, init: bool = False) -> dict[str, Any]:
    container = {"name": "x", "state": {"waiting": {"reason": reason, "message": message}}}
    states = {"initContainerStatuses": [container], "containerStatuses": [INITIALIZING]}
    return {"metadata": {"name": "c"}, "status": states if init else {"containerStatuses": [container]}}


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (FINE, ""),
        ({"metadata": {"name": "d"}}, ""),
        (waiting("ContainerCreating"), ""),
        (
            unscheduled("0/3 nodes are available: 3 Insufficient cpu."),
            "pod b: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu; add nodes, or lower the cpu, memory and "
            "gpus of the cluster spec",
        ),
        (
            unscheduled('persistentvolumeclaim "runs" not found'),
            'pod b: Unschedulable: persistentvolumeclaim "runs" not found; check the claims under `volumes` of the cluster '
            "spec",
        ),
        (
            waiting("ImagePullBackOff", "no such image\nat all"),
            "pod c: ImagePullBackOff: no such image; check `image` and `image_pull_secrets` of the cluster spec",
        ),
        (
            waiting("ErrImagePull", "denied", init=True),
            "pod c: ErrImagePull: denied; check `image` and `image_pull_secrets` of the cluster spec",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "keys" not found'),
            'pod c: CreateContainerConfigError: secret "keys" not found; check `secrets.env` of the cluster spec',
        ),
        (waiting("CrashLoopBackOff"), "pod c: CrashLoopBackOff"),
    ],
)
def test_reasons_of_pending_pods(pod: dict[str, Any], reason: str) -> None:
    assert pending_reason([FINE, pod]) == reason


def test_the_first_pod_is_the_reason() -> None:
    assert pending_reason([unscheduled("x"), waiting("ErrImagePull")]).startswith("pod b: Unschedulable")


def test_the_newest_warning_is_the_reason() -> None:
    def event(kind: str, time: str, reason: str, message: str) -> dict[str, Any]:
        involved = {"kind": "Pod", "name": "c"}
        return {
            "metadata": {}, "type": kind, "lastTimestamp": time, "involvedObject": involved, "reason": reason,
            "message": message,
        }  # fmt: skip

    events = [
        event("Warning", "2026-01-01T00:00:01Z", "FailedMount", 'configmap "x" not found'),
        event("Warning", "2026-01-01T00:00:02Z", "FailedMount", "timed out"),
        event("Normal", "2026-01-01T00:00:03Z", "Pulled", "done"),
    ]
    assert event_reason(events) == "pod c: FailedMount: timed out; check `volumes` of the cluster spec"
    assert event_reason(events[2:]) == event_reason([]) == ""

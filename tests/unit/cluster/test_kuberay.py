"""Job status from the status of KubeRay objects, as recorded from KubeRay 1.7."""

from typing import Any

import pytest

from rayfuse.cluster.kuberay import (
    STOPPED_AT_ANNOTATION,
    entrypoint_lines,
    job_info,
    service_info,
)

FAILED = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\nx\nerror: no\n"


def ray_job(annotations: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    meta = {
        "name": "tiny-abcde",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"rayfuse/kind": "job"},
    }
    return {"metadata": meta | {"annotations": annotations}, "status": status}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, ("PENDING", None, "")),
        ({"jobDeploymentStatus": "Initializing"}, ("PENDING", None, "")),
        ({"jobDeploymentStatus": "Running"}, ("PENDING", None, "")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, ("PENDING", None, "")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, ("RUNNING", None, "")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED", "message": FAILED}, ("RUNNING", None, "")),
        ({"jobDeploymentStatus": "Retrying", "message": "lost"}, ("PENDING", None, "retrying: lost")),
        (
            {"jobDeploymentStatus": "Retrying", "message": FAILED},
            ("PENDING", None, "retrying: error: no"),
        ),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, ("SUCCEEDED", 0, "")),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, ("STOPPED", None, "")),
        (
            {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": FAILED},
            ("FAILED", 3, "error: no"),
        ),
        (
            {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too late"},
            ("FAILED", None, "DeadlineExceeded: too late"),
        ),
        (
            {
                "jobDeploymentStatus": "ValidationFailed",
                "reason": "ValidationFailed",
                "message": "no such mode",
            },
            ("FAILED", None, "no such mode"),
        ),
        ({"jobDeploymentStatus": "Suspending"}, ("PENDING", None, "suspended")),
        ({"jobDeploymentStatus": "Suspended"}, ("PENDING", None, "suspended")),
    ],
)
def test_the_state_of_a_job(status: dict[str, Any], expected: tuple[Any, ...]) -> None:
    info = job_info(ray_job(**status))
    assert (info.status, info.exit_code, info.message) == expected
    assert (info.name, info.kind) == ("tiny-abcde", "job")


def test_a_stopped_job_is_not_pending() -> None:
    info = job_info(
        ray_job({STOPPED_AT_ANNOTATION: "2026-01-01T00:05:00+00:00"}, jobDeploymentStatus="Suspended")
    )
    assert info.status == "STOPPED"
    assert info.ended
    assert info.started
    assert (info.ended - info.started).total_seconds() == 300


def test_a_job_that_is_being_stopped_runs_until_it_is() -> None:
    info = job_info(
        ray_job({STOPPED_AT_ANNOTATION: "2026-01-01T00:05:00+00:00"}, jobDeploymentStatus="Suspending")
    )
    assert (info.status, info.message, info.ended) == ("RUNNING", "stopping", None)


def test_a_job_that_kueue_suspends() -> None:
    job = ray_job(jobDeploymentStatus="Suspended")
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-a"
    assert (job_info(job).status, job_info(job).message) == ("PENDING", "queued by Kueue")


def test_times_and_address() -> None:
    times = {"startTime": "2026-01-01T00:01:00Z", "endTime": "2026-01-01T00:02:00Z"}
    info = job_info(ray_job(jobDeploymentStatus="Complete", dashboardURL="head-svc:8265", **times))
    assert info.started
    assert info.ended
    assert (info.ended - info.started).total_seconds() == 60
    assert info.dashboard_url == "http://head-svc:8265"


def ray_service(ready: str, generation: int = 1, **status: Any) -> dict[str, Any]:
    meta = {"name": "tiny", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": generation}
    conditions = [{"type": "Ready", "status": ready, "reason": "x", "message": "no replicas"}]
    return {"metadata": meta, "status": {"conditions": conditions, "observedGeneration": 1, **status}}


def slot(status: str, message: str = "") -> dict[str, Any]:
    return {
        "rayClusterName": "tiny-x",
        "applicationStatuses": {"tiny": {"status": status, "message": message}},
    }


@pytest.mark.parametrize(
    ("service", "status", "message"),
    [
        ({"metadata": {"name": "tiny", "generation": 1}}, "PENDING", ""),
        (ray_service("False", pendingServiceStatus=slot("DEPLOYING")), "PENDING", ""),
        (ray_service("True", activeServiceStatus=slot("RUNNING")), "RUNNING", ""),
        (ray_service("True", 2, activeServiceStatus=slot("RUNNING")), "PENDING", "updating; the previous version is still serving"),
        (
            ray_service("True", activeServiceStatus=slot("RUNNING"), pendingServiceStatus=slot("DEPLOYING")),
            "PENDING",
            "updating; the previous version is still serving",
        ),
        (
            ray_service("True", activeServiceStatus=slot("RUNNING"), pendingServiceStatus=slot("DEPLOY_FAILED", "a\nno model")),
            "UPDATE_FAILED",
            "new version: no model",
        ),
        (
            ray_service("False", activeServiceStatus=slot("RUNNING"), pendingServiceStatus=slot("DEPLOY_FAILED", "no model")),
            "FAILED",
            "no model",
        ),
        (ray_service("False", activeServiceStatus=slot("UNHEALTHY")), "FAILED", "UNHEALTHY"),
        (ray_service("False", 2, activeServiceStatus=slot("UNHEALTHY")), "PENDING", ""),
    ],
)  # fmt: skip
def test_the_state_of_a_service(service: dict[str, Any], status: str, message: str) -> None:
    info = service_info(service)
    assert (info.status, info.message) == (status, message)


def test_a_service_that_the_operator_rejects() -> None:
    service = ray_service("False")
    service["status"]["conditions"][0]["reason"] = "ValidationFailed"
    assert (service_info(service).status, service_info(service).message) == ("FAILED", "no replicas")


def test_a_job_that_no_operator_has_seen_is_stopped_at_once() -> None:
    job = {**ray_job({STOPPED_AT_ANNOTATION: "2026-01-01T00:05:00+00:00"}), "spec": {"suspend": True}}
    assert (job_info(job).status, job_info(ray_job()).status) == ("STOPPED", "PENDING")


def test_the_log_is_the_entrypoints() -> None:
    """As Ray 2.60 prints it in the submitter's pod."""
    log = """\
Waiting for Ray Dashboard GCS to become healthy at http://127.0.0.1:1 ...
2026-11-22 04:59:12,213\tSUCC cli.py:67 -- \x1b[32mJob 'tiny-x' submitted successfully\x1b[39m
2026-11-22 04:59:12,214\tINFO cli.py:330 -- \x1b[36mNext steps\x1b[39m
2026-11-22 04:59:12,122\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job tiny-x: rayfuse train /etc/rayfuse/spec/job.yaml
checking 72 rows
2026-11-22 04:59:12,122\tINFO mine.py:1 -- a line of the job
error: no
2026-11-22 04:59:19,967\tERR cli.py:75 -- \x1b[31mJob 'tiny-x' failed\x1b[39m
2026-11-22 04:59:19,967\tINFO cli.py:89 -- Status message: Job entrypoint command failed with exit code 4, last …:
checking 72 rows
error: no
"""
    assert list(entrypoint_lines(log.splitlines())) == [
        "checking 72 rows",
        "2026-11-22 04:59:12,122\tINFO mine.py:1 -- a line of the job",
        "error: no",
    ]

"""Interpret the status of KubeRay's objects; pure functions over their JSON.

All that is matched in statuses and messages of KubeRay 1.7 and Kubernetes is here.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from rayfuse.cluster.jobs import JobInfo, Status
from rayfuse.cluster.manifests import KIND_LABEL, QUEUE_LABEL
from rayfuse.formatting import first_line, truncate
from rayfuse.ray_http import FAILED_SERVE_STATUSES

STOPPED_AT_ANNOTATION = "rayfuse/stopped"
"""Annotation of a RayJob that `rayfuse jobs stop` has suspended, with the time."""

_RAY_LOG_LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s(INFO|SUCC|WARN|ERR|WARNING|ERROR) (cli|sdk|job_manager)\.py:\d+ -- "
    r"|^Running entrypoint for job |^Waiting for Ray Dashboard "
)
_JOB_END_LINE = re.compile(r" cli\.py:\d+ -- (\x1b\[\d+m)*Job '[^']+' (succeeded|failed|was stopped)")
"""Line after which the last lines of a failed job's log are repeated."""

_EXIT_CODE = re.compile(r"\bfailed with exit code (-?\d+)")
_MAX_MESSAGE_LENGTH = 300

Json = dict[str, Any]


def job_info(job: Json) -> JobInfo:
    """Return the status of a RayJob."""
    found = job.get("status") or {}
    status = _job_status(job, found)
    message = found.get("message") or ""
    stopped = _parse_time(_annotations(job).get(STOPPED_AT_ANNOTATION)) if status == "STOPPED" else None
    return JobInfo(
        name=job["metadata"]["name"],
        kind=_kind(job),
        status=status,
        started=_parse_time(found.get("startTime") or job["metadata"].get("creationTimestamp")),
        ended=_parse_time(found.get("endTime")) or stopped,
        exit_code=_exit_code(status, message),
        message=_job_message(job, status, found),
        dashboard_url=_dashboard_url(found.get("dashboardURL")),
    )


def _job_status(job: Json, raw_status: Json) -> Status:
    """Combine KubeRay's and Ray's status: KubeRay may retry a job that has failed on Ray."""
    own, ray = raw_status.get("jobDeploymentStatus") or "", raw_status.get("jobStatus") or ""
    if own == "Complete":
        return "STOPPED" if ray == "STOPPED" else "FAILED" if ray == "FAILED" else "SUCCEEDED"
    if own in ("Failed", "ValidationFailed"):
        return "FAILED"
    if STOPPED_AT_ANNOTATION in _annotations(job) and (own in ("Suspending", "Suspended") or _is_unseen(job)):
        return "RUNNING" if own == "Suspending" else "STOPPED"
    return "RUNNING" if own == "Running" and ray not in ("", "PENDING") else "PENDING"


def _is_unseen(job: Json) -> bool:
    """Return whether the operator has not seen a suspended job yet, which it will not start then."""
    return not job.get("status") and bool((job.get("spec") or {}).get("suspend"))


def _exit_code(status: Status, message: str) -> int | None:
    if status == "SUCCEEDED":
        return 0
    match = _EXIT_CODE.search(message) if status == "FAILED" else None
    return int(match[1]) if match else None


def _job_message(job: Json, status: Status, raw_status: Json) -> str:
    own, reason, message = (raw_status.get(key) or "" for key in ("jobDeploymentStatus", "reason", "message"))
    line = _last_line(message) if _EXIT_CODE.search(message) else _first_line(message)
    if status == "FAILED":
        return line if reason in ("", "AppFailed", "ValidationFailed") else f"{reason}: {line}"
    if own == "Retrying":
        return f"retrying: {line}"
    if (own in ("Suspending", "Suspended") or _is_unseen(job)) and status == "PENDING":
        is_queued = QUEUE_LABEL in (job["metadata"].get("labels") or {})
        return "queued by Kueue" if is_queued else "suspended"
    return "stopping" if own == "Suspending" else ""


def service_info(service: Json) -> JobInfo:
    """Return the status of a RayService, which is RUNNING once its latest spec is ready."""
    found = service.get("status") or {}
    conditions = {item["type"]: item for item in found.get("conditions") or []}
    status, message = _service_status(service, found, conditions)
    return JobInfo(
        name=service["metadata"]["name"],
        kind=_kind(service),
        status=status,
        started=_parse_time(service["metadata"].get("creationTimestamp")),
        message=message,
    )


def _service_status(service: Json, raw_status: Json, conditions: Json) -> tuple[Status, str]:
    ready = conditions.get("Ready") or {}
    if ready.get("reason") == "ValidationFailed":
        return "FAILED", _first_line(ready.get("message"))
    is_ready = ready.get("status") == "True"
    pending, active = (raw_status.get(slot) or {} for slot in ("pendingServiceStatus", "activeServiceStatus"))
    newest = pending if pending.get("rayClusterName") else active
    if raw_status.get("observedGeneration") == service["metadata"].get("generation"):
        for application in (newest.get("applicationStatuses") or {}).values():
            if application["status"] in FAILED_SERVE_STATUSES:
                reason = _application_message(application)
                is_answering = is_ready and newest is pending
                return ("UPDATE_FAILED", f"new version: {reason}") if is_answering else ("FAILED", reason)
        if is_ready and newest is active:
            return "RUNNING", ""
    return "PENDING", "updating; the previous version is still serving" if is_ready else ""


def _application_message(application: Json) -> str:
    """Return why an application of Serve failed: its own message, else that of a deployment."""
    deployments = (application.get("serveDeploymentStatuses") or {}).values()
    messages = [application.get("message"), *(deployment.get("message") for deployment in deployments)]
    return next((_last_line(text) for text in messages if text), application["status"])


def entrypoint_lines(submitter_log: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the entrypoint, without those that `ray job submit` and `ray job logs` add."""
    for line in submitter_log:
        if _JOB_END_LINE.search(line):
            return
        if not _RAY_LOG_LINE.match(line):
            yield line


def _kind(manifest: Json) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(KIND_LABEL, ""))


def _annotations(manifest: Json) -> Json:
    return manifest["metadata"].get("annotations") or {}


def _dashboard_url(dashboard: str | None) -> str:
    if not dashboard:
        return ""
    return dashboard if "://" in dashboard else f"http://{dashboard}"


def _parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _first_line(text: str | None) -> str:
    return first_line(text or "", _MAX_MESSAGE_LENGTH)


def _last_line(text: str) -> str:
    """Return the last line, which is the exception of a traceback."""
    return truncate(text.strip().splitlines()[-1], _MAX_MESSAGE_LENGTH)

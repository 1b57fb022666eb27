"""What KubeRay's objects say about a submitted spec. Pure functions over their JSON."""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from rayfuse.cluster.jobs import JobInfo, Status
from rayfuse.cluster.manifests import KIND_LABEL, QUEUE_LABEL

STOPPED_AT = "rayfuse/stopped"
"""Annotation of a RayJob that `rayfuse jobs stop` has suspended: when."""

_RAY_SAYS = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s(INFO|SUCC|WARN|ERR|WARNING|ERROR) (cli|sdk|job_manager)\.py:\d+ -- "
    r"|^Running entrypoint for job |^Waiting for Ray Dashboard "
)
_THE_END = re.compile(r" cli\.py:\d+ -- (\x1b\[\d+m)*Job '[^']+' (succeeded|failed|was stopped)")
"""After it, what a failed job printed last is printed again."""

_EXIT_CODE = re.compile(r"\bfailed with exit code (-?\d+)")
_LONGEST_MESSAGE = 300
_FAILED_APPLICATIONS = ("DEPLOY_FAILED", "UNHEALTHY")

Json = dict[str, Any]


def job_info(job: Json) -> JobInfo:
    """A RayJob as `rayfuse jobs` shows it."""
    found = job.get("status") or {}
    status = _job_status(job, found)
    message = found.get("message") or ""
    stopped = _time(_annotations(job).get(STOPPED_AT)) if status == "STOPPED" else None
    return JobInfo(
        name=job["metadata"]["name"],
        kind=_kind(job),
        status=status,
        started=_time(found.get("startTime") or job["metadata"].get("creationTimestamp")),
        ended=_time(found.get("endTime")) or stopped,
        exit_code=_exit_code(status, message),
        message=_job_message(job, status, found),
        address=_address(found.get("dashboardURL")),
    )


def _job_status(job: Json, found: Json) -> Status:
    """KubeRay has two states, its own and Ray's; a job has ended when KubeRay says so, because it may try again."""
    own, ray = found.get("jobDeploymentStatus") or "", found.get("jobStatus") or ""
    if own == "Complete":
        return "STOPPED" if ray == "STOPPED" else "FAILED" if ray == "FAILED" else "SUCCEEDED"
    if own in ("Failed", "ValidationFailed"):
        return "FAILED"
    if STOPPED_AT in _annotations(job) and own in ("Suspending", "Suspended"):
        return "STOPPED" if own == "Suspended" else "RUNNING"
    return "RUNNING" if own == "Running" and ray not in ("", "PENDING") else "PENDING"


def _exit_code(status: Status, message: str) -> int | None:
    if status == "SUCCEEDED":
        return 0
    match = _EXIT_CODE.search(message) if status == "FAILED" else None
    return int(match[1]) if match else None


def _job_message(job: Json, status: Status, found: Json) -> str:
    own, reason, message = (found.get(key) or "" for key in ("jobDeploymentStatus", "reason", "message"))
    said = _last_line(message) if _EXIT_CODE.search(message) else _line(message)
    if status == "FAILED":
        return said if reason in ("", "AppFailed", "ValidationFailed") else f"{reason}: {said}"
    if own == "Retrying":
        return f"starts again: {said}"
    if own in ("Suspending", "Suspended") and status == "PENDING":
        return "waits for Kueue" if QUEUE_LABEL in (job["metadata"].get("labels") or {}) else "suspended"
    return "stopping" if own == "Suspending" else ""


def service_info(service: Json) -> JobInfo:
    """A RayService as `rayfuse jobs` shows it: RUNNING once what was submitted last answers."""
    found = service.get("status") or {}
    conditions = {item["type"]: item for item in found.get("conditions") or []}
    status, message = _service_status(service, found, conditions)
    return JobInfo(
        name=service["metadata"]["name"],
        kind=_kind(service),
        status=status,
        started=_time(service["metadata"].get("creationTimestamp")),
        message=message,
    )


def _service_status(service: Json, found: Json, conditions: Json) -> tuple[Status, str]:
    ready = conditions.get("Ready") or {}
    if ready.get("reason") == "ValidationFailed":
        return "FAILED", _line(ready.get("message"))
    answers = ready.get("status") == "True"
    pending, active = (found.get(slot) or {} for slot in ("pendingServiceStatus", "activeServiceStatus"))
    newest = pending if pending.get("rayClusterName") else active
    seen = found.get("observedGeneration") == service["metadata"].get("generation")
    if seen:
        for application in (newest.get("applicationStatuses") or {}).values():
            if application["status"] in _FAILED_APPLICATIONS:
                return "FAILED", _application_message(application)
        if answers and newest is active:
            return "RUNNING", ""
    return "PENDING", "updating; what was there before answers" if answers else ""


def _application_message(application: Json) -> str:
    """Why an application of Serve failed: its own words, else those of a deployment."""
    deployments = (application.get("serveDeploymentStatuses") or {}).values()
    said = [application.get("message"), *(deployment.get("message") for deployment in deployments)]
    return next((_last_line(text) for text in said if text), application["status"])


def waiting_for(pods: Sequence[Json]) -> str:
    """Why pods do not run: the first that a node cannot be found or a container not started for."""
    for pod in pods:
        status = pod.get("status") or {}
        reasons = [
            _of_condition(condition)
            for condition in status.get("conditions") or []
            if condition["type"] == "PodScheduled" and condition["status"] == "False"
        ]
        reasons += [
            _of_condition(container["state"]["waiting"])
            for container in status.get("containerStatuses") or []
            if (container.get("state") or {}).get("waiting")
        ]
        if reasons:
            return f"pod {pod['metadata']['name']}: {reasons[0]}"
    return ""


def _of_condition(found: Json) -> str:
    return _line(f"{found.get('reason') or 'waits'}: {found.get('message') or ''}".rstrip(": "))


def entrypoint_lines(submitter_log: Iterable[str]) -> Iterator[str]:
    """What the entrypoint has printed, out of what `ray job submit` and `ray job logs` print around it."""
    for line in submitter_log:
        if _THE_END.search(line):
            return
        if not _RAY_SAYS.match(line):
            yield line


def _kind(found: Json) -> str:
    return str((found["metadata"].get("labels") or {}).get(KIND_LABEL, ""))


def _annotations(found: Json) -> Json:
    return found["metadata"].get("annotations") or {}


def _address(dashboard: str | None) -> str:
    if not dashboard:
        return ""
    return dashboard if "://" in dashboard else f"http://{dashboard}"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return _cut(lines[0]) if lines else ""


def _last_line(text: str) -> str:
    """Where programs and tracebacks say what was wrong."""
    return _cut(text.strip().splitlines()[-1])


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 1]}…"

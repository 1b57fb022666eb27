"""Client of the jobs of any Ray cluster, through its dashboard's Jobs API. Imports no Ray."""

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote

from rayfuse.cluster.jobs import TERMINAL_STATUSES, JobInfo, Status, ignore, unknown_job_error, wait_until
from rayfuse.errors import RayfuseError, ResourceError, SpecError
from rayfuse.ray_auth import token
from rayfuse.ray_http import RayHttp, check_address, error_reason

KIND_METADATA_KEY = "rayfuse/kind"
"""Key of a job's metadata that holds the kind of its spec."""

_KIND_BY_COMMAND = {"train": "job", "tune": "sweep"}
_POLL_SECONDS = 0.5
_BYTES_PER_SECOND = 2_000_000
"""Maximum rate at which a followed log is read: Ray returns the whole log, so a long one is polled less often."""
_STOP_TIMEOUT_SECONDS = 120.0
_ANY_ERROR_STATUS = range(300, 600)

# Texts of Ray 2.60's job manager and supervisor.
_NAME_TAKEN_MESSAGE = "already exists"
_LOG_SEPARATOR = ", last available logs"


class RayJobClient:
    """Jobs submitted to one Ray cluster (implements `rayfuse.cluster.jobs.JobClient`)."""

    def __init__(self, ray: RayHttp) -> None:
        self._ray = ray

    @classmethod
    def connect(cls, address: str, environment: Mapping[str, str] = os.environ) -> "RayJobClient":
        """Connect to the dashboard at `address`: a URL, or `host:port`."""
        return cls(_connect(address, environment))

    def list(self) -> list[JobInfo]:
        """Return the submitted jobs, the newest first; drivers that connected directly are not among them."""
        response = self._ray.request("GET", "/api/jobs/", allowed_statuses=_ANY_ERROR_STATUS)
        jobs = self._ray.parse(response, list)
        found = [job for job in jobs if isinstance(job, dict) and job.get("type") == "SUBMISSION"]
        return [self._info(job) for job in sorted(found, key=_start_time, reverse=True)]

    def get(self, name: str) -> JobInfo:
        """Return a job; raise SpecError where there is none of this name."""
        response = self._ray.request("GET", _path(name), allowed_statuses=(404,))
        job = self._ray.parse(response, dict) if response.is_success else {}
        if job.get("type") != "SUBMISSION":
            raise unknown_job_error(name, [job.name for job in self.list()])
        return self._info(job)

    def logs(
        self, name: str, follow: bool = False, on_wait: Callable[[JobInfo], object] = ignore
    ) -> Iterator[str]:
        """Yield the lines of the entrypoint's output, after Ray's own first lines; with `follow` until its end.

        `on_wait` is called with the status of a followed job that is pending. Raises RayfuseError for one that is not
        followed.
        """
        num_seen = 0
        while True:
            info = self.get(name)  # before the log: nothing is printed after the end
            if info.status == "PENDING" and not follow:
                raise RayfuseError(f"{info.summary}\n{name}: no log yet")
            if info.status == "PENDING":
                on_wait(info)
            is_last = info.status in TERMINAL_STATUSES or not follow
            log: str = self._ray.parse(self._ray.request("GET", _path(name, "logs")), dict)["logs"] or ""
            end = len(log) if is_last else log.rfind("\n") + 1
            yield from log[num_seen:end].removesuffix("\n").split("\n") if end > num_seen else ()
            if is_last:
                return
            num_seen = max(num_seen, end)
            time.sleep(_POLL_SECONDS + len(log) / _BYTES_PER_SECOND)

    def stop(self, name: str) -> JobInfo:
        """Stop a job and wait until it has ended; a job that has ended is not changed."""
        if self.get(name).status not in TERMINAL_STATUSES:
            self._ray.request("POST", _path(name, "stop"))
        wait_until(
            lambda: self.get(name).status in TERMINAL_STATUSES,
            _STOP_TIMEOUT_SECONDS,
            _POLL_SECONDS,
            f"{name}: not stopped by Ray",
        )
        return self.get(name)

    def largest_node_memory(self) -> int | None:
        """Return the bytes of memory of the largest node of the cluster; None where the dashboard does not report them."""
        response = self._ray.request("GET", "/nodes?view=summary", allowed_statuses=_ANY_ERROR_STATUS)
        nodes = (self._ray.parse(response, dict).get("data") or {}).get("summary") or []
        return max((int(node["mem"][0]) for node in nodes if node.get("mem")), default=None)

    def _info(self, job: Mapping[str, Any]) -> JobInfo:
        status = cast(Status, job["status"])
        return JobInfo(
            name=job["submission_id"],
            kind=_kind(job),
            status=status,
            started=_parse_time(job["start_time"]),
            ended=_parse_time(job["end_time"]),
            exit_code=_exit_code(job["driver_exit_code"]),
            message=_message(job["message"] or "") if status in ("PENDING", "FAILED") else "",
            dashboard_url=self._ray.url,
        )


def submit(
    address: str,
    name: str,
    kind: str,
    files: Mapping[str, str],
    entrypoint: str,
    environment: Mapping[str, str],
) -> str:
    """Submit `entrypoint` to the cluster at `address`, with a working directory of `files` (content by path).

    `environment` is set for the entrypoint and its workers; Ray exposes it, so it must hold no secrets. Returns the
    submission id. Raises SpecError where the name is taken, ResourceError where Ray rejects the job, UnavailableError
    where the server is no Ray dashboard.
    """
    ray = _connect(address, os.environ)
    version = ray.parse(ray.request("GET", "/api/version", allowed_statuses=_ANY_ERROR_STATUS), dict)
    if "ray_version" not in version:
        raise ray.not_a_dashboard("its /api/version has no ray_version")
    job = {
        "submission_id": name,
        "entrypoint": entrypoint,
        "metadata": {KIND_METADATA_KEY: kind},
        "runtime_env": {"working_dir": _upload(ray, files), "env_vars": dict(environment)},
    }
    response = ray.request("POST", "/api/jobs/", allowed_statuses=_ANY_ERROR_STATUS, json=job)
    if not response.is_success:
        if _NAME_TAKEN_MESSAGE in response.text:
            raise SpecError(f"{name}: a job of this name exists on {ray.url}; choose another name")
        raise ResourceError(f"Ray at {ray.url} rejected {name}: {error_reason(response)}")
    return str(ray.parse(response, dict)["submission_id"])


def _connect(address: str, environment: Mapping[str, str]) -> RayHttp:
    check_address(address)
    url = address if address.startswith(("http://", "https://")) else f"http://{address}"
    return RayHttp(url, token(environment))


def _upload(ray: RayHttp, files: Mapping[str, str]) -> str:
    """Upload a package with these files and return its URI. Ray stores packages by content while jobs need them."""
    package = zip_files(files)
    name = f"_ray_pkg_{hashlib.blake2b(package, digest_size=16).hexdigest()}.zip"
    path = f"/api/packages/gcs/{name}"
    # The GET also pins an existing package until the job is submitted.
    if ray.request("GET", path, allowed_statuses=(404,)).status_code == 404:
        ray.request("PUT", path, content=package)
    return f"gcs://{name}"


def zip_files(files: Mapping[str, str]) -> bytes:
    """Build a zip archive whose bytes depend on the files only."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in sorted(files.items()):
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return content.getvalue()


def _path(name: str, action: str = "") -> str:
    return f"/api/jobs/{quote(name, safe='')}" + (f"/{action}" if action else "")


def _start_time(job: Mapping[str, Any]) -> float:
    """Return a sort key; a job that has not started is the newest."""
    return float(job["start_time"] or "inf")


def _kind(job: Mapping[str, Any]) -> str:
    """Return the kind in the job's metadata, else that of the `rayfuse` command in its entrypoint."""
    kind = (job["metadata"] or {}).get(KIND_METADATA_KEY)
    words = job["entrypoint"].split()
    command = words[1] if len(words) > 1 and words[0].rpartition("/")[2] == "rayfuse" else ""
    return kind or _KIND_BY_COMMAND.get(command, "")


def _parse_time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _exit_code(code: int | None) -> int | None:
    """Convert an exit code to a shell's: 128 + N for a process that was killed by signal N."""
    return 128 - code if code is not None and code < 0 else code


def _message(text: str) -> str:
    """Return the first line, without the log that Ray appends."""
    return text.partition("\n")[0].partition(_LOG_SEPARATOR)[0].strip()

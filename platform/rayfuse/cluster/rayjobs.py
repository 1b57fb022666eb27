"""Jobs of any Ray cluster, through the Jobs API of its dashboard. Imports no Ray."""

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote

from rayfuse.cluster.jobs import ENDED, JobInfo, Status, unknown
from rayfuse.errors import NotReachable, ResourceError, SpecError
from rayfuse.ray_auth import token
from rayfuse.ray_http import RayHttp, reason

KIND = "rayfuse/kind"
"""Key of a job's metadata."""

_KINDS = {"train": "job", "tune": "sweep"}
"""Of a spec, by the verb that runs it."""
_POLL_SECONDS = 0.5
_BYTES_PER_SECOND = 2_000_000
"""Of a log that is being followed: Ray only gives the whole, so a long one is asked for less often."""
_STOP_SECONDS = 120.0
_ANY = range(300, 600)


class RayJobs:
    """What was submitted to one cluster."""

    def __init__(self, ray: RayHttp) -> None:
        self._ray = ray

    @classmethod
    def connect(cls, address: str, environment: Mapping[str, str] = os.environ) -> "RayJobs":
        """The jobs of the cluster whose dashboard is at `address`: a URL, or `host:port`."""
        return cls(_open(address, environment))

    def list(self) -> list[JobInfo]:
        """All that was submitted, the newest first; drivers that connected by themselves are none of it."""
        response = self._ray.call("GET", "/api/jobs/", accept=_ANY)
        if not response.is_success or "json" not in response.headers.get("content-type", ""):
            raise NotReachable(f"{self._ray.url} is not the dashboard of a Ray cluster: {reason(response)}")
        found = [job for job in response.json() if job["type"] == "SUBMISSION"]
        return [self._info(job) for job in sorted(found, key=_started, reverse=True)]

    def get(self, name: str) -> JobInfo:
        """One job. Raises SpecError where there is none of this name."""
        response = self._ray.call("GET", _path(name), accept=(404,))
        job = response.json() if response.is_success else {}
        if job.get("type") != "SUBMISSION":
            raise unknown(name, [job.name for job in self.list()])
        return self._info(job)

    def logs(self, name: str, follow: bool = False) -> Iterator[str]:
        """What the entrypoint has printed, below a line or two of Ray; with `follow` until the job has ended."""
        seen = 0
        while True:
            ended = (
                self.get(name).status in ENDED or not follow
            )  # asked first: nothing is printed after the end
            log: str = self._ray.call("GET", _path(name, "logs")).json()["logs"] or ""
            until = len(log) if ended else log.rfind("\n") + 1
            yield from log[seen:until].removesuffix("\n").split("\n") if until > seen else ()
            if ended:
                return
            seen = max(seen, until)
            time.sleep(_POLL_SECONDS + len(log) / _BYTES_PER_SECOND)

    def stop(self, name: str) -> JobInfo:
        """Stop a job and wait until it has; one that has ended already is left as it is."""
        deadline = time.monotonic() + _STOP_SECONDS
        job = self.get(name)
        if job.status not in ENDED:
            self._ray.call("POST", _path(job.name, "stop"))
        while job.status not in ENDED:
            if time.monotonic() > deadline:
                raise ResourceError(f"{name}: still {job.status} {_STOP_SECONDS:g} s after it was stopped")
            time.sleep(_POLL_SECONDS)
            job = self.get(name)
        return job

    def _info(self, job: Mapping[str, Any]) -> JobInfo:
        status = cast(Status, job["status"])
        return JobInfo(
            name=job["submission_id"],
            kind=_kind(job),
            status=status,
            started=_time(job["start_time"]),
            ended=_time(job["end_time"]),
            exit_code=_exit_code(job["driver_exit_code"]),
            message=_message(job["message"] or "") if status in ("PENDING", "FAILED") else "",
            address=self._ray.url,
        )


def submit(
    address: str,
    name: str,
    kind: str,
    files: Mapping[str, str],
    entrypoint: str,
    environment: Mapping[str, str],
) -> str:
    """Run `entrypoint` on the cluster at `address` in a folder with `files` (content by path); its name there.

    `environment` is added to the entrypoint's and its workers', for all to see: no place for secrets. Raises
    SpecError where the name is taken.
    """
    ray = _open(address, os.environ)
    job = {
        "submission_id": name,
        "entrypoint": entrypoint,
        "metadata": {KIND: kind},
        "runtime_env": {"working_dir": _upload(ray, files), "env_vars": dict(environment)},
    }
    response = ray.call("POST", "/api/jobs/", accept=_ANY, json=job)
    if not response.is_success:
        if "already exists" in response.text:
            raise SpecError(f"{name}: a job of this name is on {ray.url} already; take another name")
        raise ResourceError(f"Ray at {ray.url} does not take {name}: {reason(response)}")
    return str(response.json()["submission_id"])


def _open(address: str, environment: Mapping[str, str]) -> RayHttp:
    url = address if address.startswith(("http://", "https://")) else f"http://{address}"
    return RayHttp(url, token(environment))


def _upload(ray: RayHttp, files: Mapping[str, str]) -> str:
    """The URI of a package with these files. Ray keeps packages by content while jobs need them."""
    package = _zip(files)
    name = f"_ray_pkg_{hashlib.blake2b(package, digest_size=16).hexdigest()}.zip"
    path = f"/api/packages/gcs/{name}"
    # Asking also holds an existing one for as long as it takes to submit.
    if ray.call("GET", path, accept=(404,)).status_code == 404:
        ray.call("PUT", path, content=package)
    return f"gcs://{name}"


def _zip(files: Mapping[str, str]) -> bytes:
    """The same bytes for the same files, whenever it is made."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in sorted(files.items()):
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return content.getvalue()


def _path(name: str, action: str = "") -> str:
    return f"/api/jobs/{quote(name, safe='')}" + (f"/{action}" if action else "")


def _started(job: Mapping[str, Any]) -> float:
    """For sorting: a job that has no time yet is the newest."""
    return float(job["start_time"] or "inf")


def _kind(job: Mapping[str, Any]) -> str:
    """As whoever submitted it says, else by the verb of `rayfuse` that it runs."""
    said = (job["metadata"] or {}).get(KIND)
    words = job["entrypoint"].split()
    verb = words[1] if len(words) > 1 and words[0].rpartition("/")[2] == "rayfuse" else ""
    return said or _KINDS.get(verb, "")


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _exit_code(code: int | None) -> int | None:
    """As a shell gives it: a process that signal N ended has 128 + N."""
    return 128 - code if code is not None and code < 0 else code


def _message(text: str) -> str:
    """The first line, without the log that Ray puts below it."""
    return text.partition("\n")[0].partition(", last available logs")[0].strip()

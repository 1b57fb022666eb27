"""Submitted jobs, in the same form for Kubernetes and Ray's Jobs API."""

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from rayfuse.errors import ResourceError, SpecError

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "UPDATE_FAILED"]

TERMINAL_STATUSES: tuple[Status, ...] = ("SUCCEEDED", "FAILED", "STOPPED", "UPDATE_FAILED")
"""Statuses of a job that has ended, or of a service whose update has."""


@dataclass(frozen=True)
class JobInfo:
    """Status of a submitted spec."""

    name: str
    """Name of the RayJob or RayService, or Ray's submission id."""
    kind: str
    """job, sweep or service; empty where the job was not submitted by Rayfuse."""
    status: Status
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; UPDATE_FAILED: the previous version of a service is serving."""
    started: datetime | None = None
    """Start time in UTC; None before the start."""
    ended: datetime | None = None
    """End time in UTC; None before the end."""
    exit_code: int | None = None
    """Exit code of the entrypoint; None where it has not ended or the cluster does not report it."""
    message: str = ""
    """Reason why it is pending or failed, in one line."""
    dashboard_url: str = ""
    """URL of the Ray dashboard, as reported by the cluster."""

    @property
    def summary(self) -> str:
        """Name, status, exit code of a failed job and message, in one line."""
        code = f" with exit code {self.exit_code}" if self.exit_code else ""
        return f"{self.name}: {self.status}{code}" + (f"  {self.message}" if self.message else "")


def ignore(info: JobInfo) -> None:
    """Do nothing: the default of `JobClient.logs`."""


class JobClient(Protocol):
    """Client of the jobs of one cluster.

    Every method raises UnavailableError where the cluster is unreachable or denies access.
    """

    def list(self) -> list[JobInfo]:
        """Return all jobs, the newest first."""

    def get(self, name: str) -> JobInfo:
        """Return a job; raise SpecError with the known names where there is no job of this name."""

    def logs(
        self, name: str, follow: bool = False, on_wait: Callable[[JobInfo], object] = ignore
    ) -> Iterator[str]:
        """Yield the lines of the entrypoint's output; with `follow` until the job has ended.

        `on_wait` is called with the status while a followed job has no log yet. Raises RayfuseError, with the status,
        where a job has none and is not followed.
        """

    def stop(self, name: str) -> JobInfo:
        """Stop a job and wait until it has ended; a job that has ended is not changed."""


def unknown_job_error(name: str, known: Sequence[str]) -> SpecError:
    """Build the error for an unknown job name, with the closest known name."""
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known jobs: {', '.join(known) or 'none'}"
    return SpecError(f"{name}: no such job; {remedy}")


def wait_until(
    is_done: Callable[[], bool], timeout: float, poll_seconds: float, message: str, remedy: str = ""
) -> None:
    """Poll `is_done` until it is true; raise ResourceError with `message` and `remedy` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not is_done():
        if time.monotonic() > deadline:
            raise ResourceError(f"{message} within {timeout:g} s" + (f"; {remedy}" if remedy else ""))
        time.sleep(poll_seconds)

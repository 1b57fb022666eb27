"""What runs on a cluster, seen the same way on Kubernetes and through Ray's Jobs API."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from rayfuse.errors import SpecError

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]

ENDED: tuple[Status, ...] = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobInfo:
    """One submitted spec."""

    name: str
    """What `rayfuse jobs` calls it: the name of the RayJob, or Ray's submission id."""
    kind: str
    """job or sweep; empty for what something else than Rayfuse submitted."""
    status: Status
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    """Of the entrypoint, where it has ended and the cluster tells."""
    message: str = ""
    """Why it waits or failed, in a line."""
    address: str = ""
    """Ray's dashboard of the cluster it runs on, as the cluster reports it."""


class Jobs(Protocol):
    """Jobs of one place. Every method raises NotReachable where the place does not answer or does not let us in."""

    def list(self) -> list[JobInfo]:
        """All jobs, the newest first."""

    def get(self, name: str) -> JobInfo:
        """One job. Raises SpecError that lists the known names where there is none of this name."""

    def logs(self, name: str, follow: bool = False) -> Iterator[str]:
        """What the entrypoint has printed, line by line; with `follow` until the job has ended."""

    def stop(self, name: str) -> JobInfo:
        """Stop a job and wait until it has; one that has ended already is left as it is."""


def unknown(name: str, known: Sequence[str]) -> SpecError:
    """The error for a name that no job has, with the nearest one that some job has."""
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    return SpecError(f"{name}: no such job; {remedy}")

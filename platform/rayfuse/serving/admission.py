"""Admission of requests to an engine, up to the limit of its endpoint."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayfuse.serving.problems import ProblemError
from rayfuse.serving.settings import Settings


class AdmittingEngine:
    """Base class of engines: counts the requests in progress, and rejects those above the limit."""

    settings: Settings
    active_requests = 0
    """Requests between their admission and the end of their response."""

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request while it is active; raise ProblemError if too many are."""
        if self.active_requests >= self.settings.max_in_flight:
            raise ProblemError(
                "overloaded",
                f"{self.settings.max_queued_requests} requests are queued already (limits.max_queued_requests); retry later",
            )
        self.active_requests += 1
        try:
            yield
        finally:
            self.active_requests -= 1

"""Exceptions that Rayfuse raises for expected failures; each message names the value, the rule and the remedy.

The command line prints them as one line on standard error and exits with `exit_code`. Any other exception is a bug and
keeps its traceback. All of them pickle with their fields, so that they cross process boundaries.
"""

import signal
from typing import Self


class RayfuseError(Exception):
    """Base class of all expected errors. Raised itself where the work failed while it was running."""

    exit_code = 1


class SpecError(RayfuseError):
    """An invalid spec file or command line; nothing was started."""

    exit_code = 2


class DataError(RayfuseError):
    """Unusable data: unreadable, empty, without a required column, or with too many invalid rows."""


class InsufficientRowsError(DataError):
    """Training rows that lack something, such as a second class; other rows may have it."""


class InvalidInputError(RayfuseError):
    """An invalid value in a row or a request, such as a corrupt image or a number instead of a text."""

    def __init__(self, reason: str, input_name: str | None = None, row: int | None = None) -> None:
        super().__init__(reason, input_name, row)
        self.reason = reason
        """Description of the error, without the name of the input."""
        self.input_name = input_name
        """The input or task that the value belongs to; None where the raiser does not know it."""
        self.row = row
        """The row or instance, counted from 0; None where the raiser does not know it."""

    def __str__(self) -> str:
        row = [] if self.row is None else [f"row {self.row}"]
        return ": ".join([*row, *filter(None, [self.input_name]), self.reason])

    def for_input(self, input_name: str) -> Self:
        """Return this error with the name of its input."""
        return type(self)(self.reason, input_name, self.row)

    def in_row(self, row: int) -> Self:
        """Return this error with the number of its row."""
        return type(self)(self.reason, self.input_name, row)


class MissingInputError(InvalidInputError):
    """A required input that is absent or empty."""


class ResourceError(RayfuseError):
    """A resource that is exhausted or missing on this machine or storage: disk space, a free port, a package."""


class OutOfMemoryError(ResourceError):
    """Memory of a host or of a GPU that is exhausted."""


class GateRejectedError(RayfuseError):
    """A candidate that failed a promotion gate."""

    exit_code = 3


class UnavailableError(RayfuseError):
    """A service that is unreachable or denies access: MLflow, a cluster, an endpoint."""

    exit_code = 4


class RunInterruptedError(RayfuseError):
    """A run that a user or a cluster manager stopped; its checkpoints remain. Its exit code is 128 + the signal."""

    exit_code = 130

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message, signum)
        self.message = message
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return self.message


INTERRUPT_EXCEPTIONS = (KeyboardInterrupt, SystemExit)
"""Exceptions by which a user or a cluster manager stops a driver; Ray turns SIGTERM into SystemExit."""

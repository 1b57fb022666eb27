"""The errors that Rayfuse raises on purpose. Each names the value, the rule and the remedy.

The command line turns them into one line on standard error and `exit_code`; anything else is a bug
and keeps its traceback. They cross process boundaries: all state is in `args`, so they pickle.
"""


class RayfuseError(Exception):
    """Base of all expected errors; on its own it means that the work failed while running."""

    exit_code = 1


class SpecError(RayfuseError):
    """A spec file or a command line is wrong; nothing was started."""

    exit_code = 2


class DataError(RayfuseError):
    """The data cannot be used: unreadable, empty, no such column, or too many bad rows."""


class BadInput(RayfuseError):
    """One value of one row or request cannot be read: a broken picture, a number for a text, …"""


class MissingInput(BadInput):
    """A required input is absent."""


class ResourceError(RayfuseError):
    """This machine or storage lacks something that the work needs: space, a free port, a package."""


class GateRefused(RayfuseError):
    """A candidate did not pass a promotion gate."""

    exit_code = 3


class NotReachable(RayfuseError):
    """A service does not answer or does not let us in: MLflow, a cluster, an endpoint."""

    exit_code = 4


class Interrupted(RayfuseError):
    """The user stopped the work; what was done is kept."""

    exit_code = 130


STOPS = (KeyboardInterrupt, SystemExit)
"""How a person, or who looks after a cluster, stops a driver: Ray turns SIGTERM into SystemExit."""

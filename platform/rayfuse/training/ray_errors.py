"""Causes of the errors that Ray raises: the only module that depends on how Ray and Ray Train wrap an exception."""

import errno
from collections.abc import Iterator

from rayfuse.errors import RayfuseError, ResourceError, UnavailableError

_CAUSE_ATTRIBUTES = ("cause", "controller_failure", "__cause__")
"""Of RayTaskError, of ControllerError, and of every exception with `raise … from`."""
_DISK_FULL_TEXT = "No space left on device"
"""Ray's own writes to a full disk (spilled objects, pyarrow) have it in their message, without an errno."""


def unwrap_error(error: BaseException) -> BaseException:
    """Return the RayfuseError that caused an error of Ray; a ResourceError if the disk was full; else the error."""
    from ray.exceptions import RayError

    causes = list(_iter_causes(error, set()))
    ours = [cause for cause in causes if isinstance(cause, RayfuseError)]
    if ours:  # Ray's copy of an error that a task raised has the same class, and a traceback as its text
        return next((cause for cause in ours if not isinstance(cause, RayError)), ours[0])
    if any(_is_disk_full(cause) for cause in causes):
        return ResourceError(
            f"output.storage: {_DISK_FULL_TEXT}; free some space and run the same command again to resume"
        )
    return error


def is_permanent(error: BaseException) -> bool:
    """Return whether a worker failed for a reason that another attempt would meet again."""
    cause = unwrap_error(error)
    return isinstance(cause, RayfuseError) and not isinstance(cause, UnavailableError)


def _iter_causes(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """Yield the causes of the errors of all workers, and of the error, and the error itself."""
    if id(error) in seen:
        return
    seen.add(id(error))
    wrapped = [*getattr(error, "worker_failures", {}).values()]
    wrapped += [cause for name in _CAUSE_ATTRIBUTES if (cause := getattr(error, name, None))]
    for cause in wrapped:
        yield from _iter_causes(cause, seen)
    yield error


def _is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _DISK_FULL_TEXT in str(error)

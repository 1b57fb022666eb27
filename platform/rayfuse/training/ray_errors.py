"""Causes of the errors that Ray raises: the only module that depends on how Ray and Ray Train wrap an exception."""

import errno
from collections.abc import Iterator

from rayfuse.errors import OutOfMemoryError, RayfuseError, ResourceError, UnavailableError

_CAUSE_ATTRIBUTES = ("cause", "controller_failure", "health_check_failure", "__cause__")
"""Of RayTaskError, of ControllerError, of WorkerHealthCheckFailedError, and of every exception with `raise … from`."""
_DISK_FULL_TEXT = "No space left on device"
"""Ray's own writes to a full disk (spilled objects, pyarrow) have it in their message, without an errno."""
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory: you tried to allocate")
"""PyTorch's allocator on a CPU raises a RuntimeError with one of them."""


def unwrap_error(error: BaseException) -> BaseException:
    """Return the RayfuseError that caused an error of Ray; a ResourceError if disk or memory was full; else the error."""
    from ray.exceptions import RayError

    causes = list(_iter_causes(error, set()))
    ours = [cause for cause in causes if isinstance(cause, RayfuseError)]
    if ours:  # Ray's copy of an error that a task raised has the same class, and a traceback as its text
        return next((cause for cause in ours if not isinstance(cause, RayError)), ours[0])
    if any(_is_disk_full(cause) for cause in causes):
        return ResourceError(
            f"output.storage: {_DISK_FULL_TEXT}; free some space and run the same command again to resume"
        )
    if exhausted := [cause for cause in causes if _is_out_of_memory(cause)]:
        return OutOfMemoryError(_out_of_memory_message(exhausted[0]))
    return error


def is_permanent(error: BaseException) -> bool:
    """Return whether a worker failed for a reason that another attempt would meet again.

    Other processes of a node may be the reason why Ray's memory monitor has ended a worker.
    """
    cause = unwrap_error(error)
    if isinstance(cause, UnavailableError) or any(map(_is_killed_by_ray, _iter_causes(error, set()))):
        return False
    return isinstance(cause, RayfuseError)


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


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or _is_killed_by_ray(error)
        or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
    )


def _is_killed_by_ray(error: BaseException) -> bool:
    """Return whether Ray's memory monitor has ended a worker."""
    from ray.exceptions import OutOfMemoryError as KilledError

    return isinstance(error, KilledError)


def _out_of_memory_message(error: BaseException) -> str:
    reason = "the memory of its node was nearly full" if _is_killed_by_ray(error) else first_line(error)
    return (
        f"a worker ran out of memory: {reason}; lower train.batch_size or raise train.gradient_accumulation_steps; "
        "`rayfuse plan` lists the layouts that fit"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _DISK_FULL_TEXT in str(error)

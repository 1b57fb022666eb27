"""Causes in the real errors of Ray and Ray Train."""

import errno
import pickle

import pytest
import torch
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError

from rayfuse.errors import DataError, OutOfMemoryError, ResourceError, UnavailableError
from rayfuse.training.ray_errors import is_permanent, unwrap_error

CAUSE = DataError("rows: no column `label`")


def task_error(cause: Exception) -> RayTaskError:
    """Return what `ray.get` raises for a task that raised `cause`, with its class too."""
    return RayTaskError("task", "traceback of the task", cause).as_instanceof_cause()


def chained(cause: Exception) -> Exception:
    try:
        raise RuntimeError("outer") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        CAUSE,
        task_error(CAUSE),
        WorkerGroupError("rank 1 failed", {1: CAUSE}),
        WorkerGroupError("two ranks failed", {0: RuntimeError("connection closed by peer"), 1: CAUSE}),
        ControllerError(CAUSE),
        ControllerError(WorkerGroupError("rank 0 failed", {0: CAUSE})),
        chained(CAUSE),
        ControllerError(task_error(CAUSE)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_error_is_found_inside(error: Exception) -> None:
    assert isinstance(unwrap_error(error), DataError)
    assert "rows: no column `label`" in str(unwrap_error(error))
    assert is_permanent(error)


def test_an_error_that_crossed_processes_is_found() -> None:
    error = pickle.loads(pickle.dumps(WorkerGroupError("rank 1 failed", {1: CAUSE})))
    assert str(unwrap_error(error)) == str(CAUSE)


def test_an_unavailable_service_is_worth_another_attempt() -> None:
    assert not is_permanent(
        WorkerGroupError("rank 0 failed", {0: UnavailableError("MLflow does not respond")})
    )


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("IOError: [Errno 28] Error writing bytes to file. Detail: No space left on device"),
    ],
)
def test_a_full_disk_has_a_remedy(cause: Exception) -> None:
    found = unwrap_error(WorkerGroupError("rank 0 failed", {0: cause}))
    assert isinstance(found, ResourceError)
    assert str(found) == (
        "output.storage: No space left on device; free some space and run the same command again to resume"
    )


def monitor_kill() -> Exception:
    """Return what Ray Train raises for a worker that Ray's memory monitor has ended."""
    killed = RayOutOfMemoryError(
        "Task was killed due to the node running low on memory.\nMemory on the node …"
    )
    return WorkerGroupError("rank 0 failed", {0: WorkerHealthCheckFailedError("no response", killed)})


@pytest.mark.parametrize(
    "cause",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has …"),
        MemoryError("Unable to allocate 8.00 TiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"
        ),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_a_worker_out_of_memory_is_not_tried_again(cause: Exception) -> None:
    error = pickle.loads(pickle.dumps(ControllerError(WorkerGroupError("rank 0 failed", {0: cause}))))
    found = unwrap_error(error)
    assert isinstance(found, OutOfMemoryError)
    assert "\n" not in str(found)
    assert str(cause).splitlines()[0] in str(found)
    assert "rayfuse plan" in str(found)
    assert is_permanent(error)


def test_pytorch_itself_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert isinstance(unwrap_error(WorkerGroupError("rank 0", {0: caught.value})), OutOfMemoryError)


def test_a_worker_that_the_memory_monitor_ended_may_try_again() -> None:
    found = unwrap_error(monitor_kill())
    assert isinstance(found, OutOfMemoryError)
    assert "the memory of its node was nearly full" in str(found)
    assert not is_permanent(monitor_kill())


def test_other_errors_stay_as_they_are() -> None:
    error = WorkerGroupError("rank 0 failed", {0: ZeroDivisionError("division by zero")})
    assert unwrap_error(error) is error
    assert not is_permanent(error)


def test_errors_that_cause_each_other_end() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert unwrap_error(one) is one

"""Memory and time of a job, estimated before it starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.specs import as_local_job
from rayfuse.errors import SpecError
from rayfuse.spec.base import parse_size
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.estimate.planner import Plan

_PARAMETERS = ("gpus", "gpu_memory", "device", "memory", "rows", "lengths")


def plan(
    job: "Job | Mapping[str, Any] | str | Path",
    *,
    gpus: int | None = None,
    gpu_memory: int | str | None = None,
    device: str | None = None,
    memory: int | str | None = None,
    rows: int | None = None,
    lengths: Mapping[str, float] | None = None,
    **overrides: Any,
) -> "Plan":
    """Estimate memory by layout and training time of a job, without starting it. `print` shows the report.

    Args:
        job: The path or URL of a YAML file, a Job, or a dict.
        gpus: Number of GPUs to plan for.
        gpu_memory: Memory of each GPU, in bytes or as `24GB`.
        device: Known GPU, such as `H100`, for its memory and speed.
        memory: Host memory of all workers on a CPU; by default that of this machine.
        rows: Number of training rows; the data is not read.
        lengths: Length by input in tokens, seconds, frames, steps or items, as in `{"text": 128}`.
        **overrides: Values of the spec by path, as in `**{"train.batch_size": 128}`.

    Raises:
        SpecError: The job or an option is invalid.
        DataError: The rows cannot be read.
    """
    from rayfuse.data.tables import store_tables
    from rayfuse.estimate.gpu_specs import find_gpu_spec
    from rayfuse.estimate.planner import Planner, PlanRequest

    request = PlanRequest(
        gpus,
        _bytes("gpu_memory", gpu_memory),
        find_gpu_spec(device) if device else None,
        _bytes("memory", memory),
        rows,
        dict(lengths or {}),
    )
    return Planner.from_job(store_tables(as_local_job(job, overrides, _PARAMETERS)), request).plan()


def _bytes(name: str, size: int | str | None) -> int | None:
    if not isinstance(size, str):
        return size
    try:
        return parse_size(size)
    except ValueError:
        raise SpecError(f"{name}: {size!r} is not a size; use a number with a unit, such as 24GB") from None

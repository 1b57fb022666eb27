"""Comparison of the memory that jobs need with that of the machines, before anything starts."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayfuse.errors import RayfuseError
from rayfuse.estimate.gpu_specs import GpuSpec
from rayfuse.estimate.planner import Layout, Planner, PlanRequest
from rayfuse.estimate.report import recommend
from rayfuse.estimate.synthetic_batch import max_lengths, with_assumed_statistics
from rayfuse.formatting import format_bytes
from rayfuse.spec.job import Job

_PROCESS_BYTES = 600_000_000
"""Memory of a worker's process without a model, as `rayfuse.estimate.baseline` measures it."""
_SHORT_FRACTION = 1 / 8
"""Length of short values, as a fraction of the maximum: rows are not read, and a job that lacks the memory for them fails."""
_UNLIMITED = 1 << 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerMemory:
    """Memory of each worker of a job where it will run."""

    place: str
    """Place of the workers, for messages, as in "in a pod of workers.cpu"."""
    host_bytes: int
    """Bytes of host memory."""
    gpu: GpuSpec | None = None
    """Kind of its GPU; None: unknown, or a job on CPUs."""


def find_misfits(
    jobs: Iterable[tuple[str, Job]], memory_of: Callable[[Job], WorkerMemory], loads_models: bool = True
) -> list[str]:
    """Return an error for each job, given with a label, whose workers need more memory than they have.

    Rows are not read: a job that fits for short values only is logged as a warning. Jobs that cannot be simulated on
    this machine are not checked, nor are those with pretrained encoders of which it has no folder unless `loads_models`.
    """
    problems = []
    for label, job in jobs:
        try:
            missing = None if loads_models else _missing_model(job)
            if missing:
                _log.info("memory is not estimated: %s is not on this machine", missing)
            elif problem := _misfit(job, memory_of(job)):
                problems.append(f"{label}{problem}")
        except (RayfuseError, ImportError) as error:
            _log.info("memory is not estimated: %s", error)
    return problems


def _misfit(job: Job, memory: WorkerMemory) -> str | None:
    """Return why a job does not fit, and what would; log a warning if it does not fit for long values only."""
    planner = _planner(job, memory, {})
    problem = _excess(planner, memory)
    if problem is None:
        return None
    fitted, _ = with_assumed_statistics(job)
    short = {name: _shorten(length) for name, length in max_lengths(fitted).items()}
    if short:
        shorter = _planner(job, memory, short)
        if _excess(shorter, memory) is None:
            _log.warning("%s, if values have the maximum length", problem)
            return None
        planner, problem = shorter, _excess(shorter, memory)
    return f"{problem}; {recommend(planner.smallest_fitting(_PROCESS_BYTES), planner.on_gpu)}"


def _planner(job: Job, memory: WorkerMemory, lengths: Mapping[str, float]) -> Planner:
    workers = job.compute.max_workers
    request = PlanRequest(
        gpu_memory=None if memory.gpu else _UNLIMITED,
        gpu_spec=memory.gpu,
        memory=memory.host_bytes * workers,
        rows=job.train.batch_size,
        lengths=lengths,
    )
    return Planner.from_job(job, request)


def _excess(planner: Planner, memory: WorkerMemory) -> str | None:
    layout = planner.current_layout(_PROCESS_BYTES)
    for what, needed, available in _needs(layout, planner.on_gpu, memory):
        if needed > available:
            return (
                f"each worker needs {format_bytes(needed)} of {what} ({layout.phase.name}, micro-batches of "
                f"{layout.micro_batch_size} rows), and has {format_bytes(available)} {memory.place}"
            )
    return None


def _needs(layout: Layout, on_gpu: bool, memory: WorkerMemory) -> Iterator[tuple[str, int, int]]:
    if on_gpu:
        yield "GPU memory", layout.phase.total, layout.memory_limit
        yield "memory", layout.host_bytes + _PROCESS_BYTES, memory.host_bytes
    else:
        yield "memory", layout.phase.total, layout.memory_limit


def _shorten(length: float) -> float:
    return length * _SHORT_FRACTION if isinstance(length, float) else max(1, length * _SHORT_FRACTION)


def _missing_model(job: Job) -> str | None:
    """Return a pretrained encoder of a job whose folder this machine does not have."""
    return next(
        (model for model in _models(job.model_dump(mode="json")["inputs"]) if not Path(model).is_dir()), None
    )


def _models(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") == "huggingface" and isinstance(node.get("model"), str):
            yield node["model"]
        for inner in node.values():
            yield from _models(inner)

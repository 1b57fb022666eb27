"""What a run took beside what was planned for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse.data.rows import Row
from rayfuse.spec.job import Job
from rayfuse.train.plan.planning import Planner, Question
from rayfuse.train.plan.typical import longest, with_lengths

_FRAGMENTED = 1.2
_REMEDY = "unless the environment has MALLOC_MMAP_THRESHOLD_=1048576 (docs/planning.md)"


def predict(job: Job, rows: Sequence[Row], base: int) -> int:
    """Bytes at the peak of one worker of a fitted job; `base` of them are its process's. Raises as `Planner`."""
    return Planner(with_lengths(job, longest(job, rows)), len(rows), Question()).predicted(base)


def beside_plan(job: Job, rows: Sequence[Row], measured: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """`memory/peak_bytes` and `memory/predicted_bytes`, and a line for people.

    measured: as `PeakMemory.told` gives it, of one worker.
    """
    peak = measured["peak_bytes"]
    metrics = {"memory/peak_bytes": float(peak)}
    try:
        planned = predict(job, rows, measured["baseline_bytes"])
    except Exception as error:  # noqa: BLE001 - no run is lost for what it did not need
        return metrics, f"peak memory of a worker: {peak / 1e9:.2f} GB; not planned: {error}"
    line = f"peak memory of a worker: {peak / 1e9:.2f} GB; planned: {planned / 1e9:.2f} GB"
    if not measured["on_gpu"] and peak > _FRAGMENTED * planned:
        line += f"; glibc keeps much of what was freed, {_REMEDY}"
    return {**metrics, "memory/predicted_bytes": float(planned)}, line

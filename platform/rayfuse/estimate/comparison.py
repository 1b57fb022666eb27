"""Measured memory of a run compared with its plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse.data.rows import Row
from rayfuse.estimate.planner import Planner, PlanRequest
from rayfuse.estimate.synthetic_batch import max_input_lengths, with_lengths
from rayfuse.spec.job import Job

_TOLERANCE = 1.25


def predict_peak_bytes(job: Job, rows: Sequence[Row], baseline_bytes: int) -> int:
    """Return the predicted peak bytes of one worker of a fitted job. Raises as `Planner` does.

    `baseline_bytes`: bytes of its process without the model.
    """
    return Planner(
        with_lengths(job, max_input_lengths(job, rows)), len(rows), PlanRequest()
    ).predict_peak_bytes(baseline_bytes)


def compare_with_plan(
    job: Job, rows: Sequence[Row], measured: Mapping[str, Any]
) -> tuple[dict[str, float], str]:
    """Return the metrics `memory/peak_bytes` and `memory/predicted_bytes`, and a line that compares them.

    `measured`: `PeakMemory.to_dict` of one worker. Without a prediction the line has the reason.
    """
    peak = measured["peak_bytes"]
    metrics = {"memory/peak_bytes": float(peak)}
    try:
        predicted = predict_peak_bytes(job, rows, measured["baseline_bytes"])
    except Exception as error:  # noqa: BLE001 - a failed prediction must not fail the run
        return metrics, f"peak memory of a worker: {peak / 1e9:.2f} GB; not predicted: {error}"
    line = f"peak memory of a worker: {peak / 1e9:.2f} GB; predicted: {predicted / 1e9:.2f} GB"
    if not measured["on_gpu"] and peak > _TOLERANCE * predicted:
        line += "; docs/resource-estimation.md lists what a plan does not count"
    return {**metrics, "memory/predicted_bytes": float(predicted)}, line

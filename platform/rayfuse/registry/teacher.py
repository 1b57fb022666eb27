"""Teacher model of a job with distillation."""

from collections.abc import Sequence
from pathlib import Path

from rayfuse.data.rows import Row
from rayfuse.registry.download import fetch
from rayfuse.registry.mlflow_connection import resolve_tracking_uri
from rayfuse.spec.job import Job
from rayfuse.training.distillation import check_teacher


def fetch_teacher(job: Job, rows: Sequence[Row]) -> Path | None:
    """Download the job's teacher and return its model folder; None if the job has none.

    Raises DataError if the teacher does not fit this job or these training rows.
    """
    if job.train.distillation is None:
        return None
    teacher = job.train.distillation.teacher
    tracking = (
        resolve_tracking_uri(job.output.tracking_uri, job.output.storage)
        if teacher.startswith("models:")
        else None
    )
    folder = fetch(teacher, tracking).folder
    check_teacher(job, rows, folder)
    return folder

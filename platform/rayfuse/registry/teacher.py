"""Teacher model of a job with distillation."""

from pathlib import Path

from rayfuse.data.ingest import MapFn
from rayfuse.data.store import RowDataset
from rayfuse.registry.download import fetch
from rayfuse.registry.mlflow_connection import resolve_tracking_uri
from rayfuse.spec.job import Job
from rayfuse.training.distillation import check_teacher


def fetch_teacher(job: Job, rows: RowDataset, map_fn: MapFn = map) -> Path | None:
    """Download the job's teacher and return its model folder; None if the job has none.

    Raises DataError if the teacher does not fit this job or these training rows, which are decoded with `map_fn`.
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
    check_teacher(job, rows, folder, map_fn)
    return folder

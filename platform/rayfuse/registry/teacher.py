"""The teacher of a job that distills: fetched from the registry or a URL, and checked before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

from rayfuse.data.rows import Row
from rayfuse.registry.fetching import fetch
from rayfuse.registry.tracking import tracking_uri
from rayfuse.spec.job import Job
from rayfuse.train.distill import check_teacher


def fetch_teacher(job: Job, rows: Sequence[Row]) -> Path | None:
    """The teacher's model folder on this machine; None where the job has no teacher.

    Raises DataError where the teacher cannot teach this job on these training rows.
    """
    if job.train.distill is None:
        return None
    teacher = job.train.distill.teacher
    tracking = (
        tracking_uri(job.output.tracking, job.output.storage) if teacher.startswith("models:") else None
    )
    folder = fetch(teacher, tracking).folder
    check_teacher(job, rows, folder)
    return folder

"""Schemas of a model's predictions, from its fitted job alone."""

from rayfuse.data.frames import column_name
from rayfuse.modalities import Schema
from rayfuse.model.tasks import task_class
from rayfuse.spec.family import part_options
from rayfuse.spec.job import Job


def output_schemas(job: Job) -> dict[str, Schema]:
    """Return the JSON Schema of each task's prediction."""
    return {name: task_class(task).response_schema(part_options(task)) for name, task in job.tasks.items()}


def column_schemas(job: Job) -> dict[str, Schema]:
    """Return the JSON Schema of each column TASK/KEY of a frame of predictions; a custom task may not describe its keys."""
    return {
        column_name(task, key): schema
        for task, described in output_schemas(job).items()
        for key, schema in described.get("properties", {}).items()
    }

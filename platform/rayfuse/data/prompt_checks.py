"""Checks of the prompts of generation tasks before a job starts."""

from rayfuse.errors import DataError
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig


def check_prompts(job: Job) -> None:
    """Raise DataError if the tokenizer or chat template of a task's language model cannot be used."""
    for name, task in job.tasks.items():
        if isinstance(task, GenerationTaskConfig):
            try:
                renderer = PromptRenderer(task, job.inputs)
                renderer.end_id  # noqa: B018 - loads and renders all
                renderer.max_text_tokens  # noqa: B018
            except DataError as error:
                raise DataError(f"tasks.{name}.model: {error}") from None

"""Checks of the prompts of generation tasks before a job starts."""

from rayfuse.errors import DataError
from rayfuse.modalities.pretrained import load_max_positions
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig


def check_prompts(job: Job) -> None:
    """Raise DataError if the tokenizer or chat template of a task's language model cannot be used, or is too short.

    Each input with an encoder counts as one soft token here; the workers know their number.
    """
    for name, task in job.tasks.items():
        if isinstance(task, GenerationTaskConfig):
            try:
                renderer = PromptRenderer(task, job.inputs)
                length = renderer.max_text_tokens + len(renderer.span_inputs)
                renderer.check_length(length, load_max_positions(task.model))
            except DataError as error:
                raise DataError(f"tasks.{name}.model: {error}") from None

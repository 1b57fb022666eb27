"""Check before the first step that prompts and replies fit into the context of their language model."""

from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.model.fused import task_heads
from rayfuse.model.tasks import TaskHead
from rayfuse.model.token_counts import max_aligned_tokens, max_encoded_tokens
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig, TaskConfig


def check_context_lengths(job: Job, model: nn.Module) -> None:
    """Raise DataError if the longest prompt and reply of a task exceed the positions of its language model.

    With sharded weights, of which the number of soft tokens is not known here, the step that exceeds the positions raises
    the error. Raises SpecError if a model cannot restrict its replies to a JSON schema.
    """
    for name, head in task_heads(model).items():
        lengths = {
            span: max_encoded_tokens(job, model, span) * job.inputs[span].max_items
            if span in head.encoded_inputs
            else max_aligned_tokens(job, model, span)
            for span in head.soft_token_inputs
        }
        try:
            head.check_context(lengths)
            _check_slots(job.tasks[name], head)
        except (DataError, SpecError) as error:
            raise type(error)(f"tasks.{name}: {error}") from None


def _check_slots(task: TaskConfig, head: TaskHead) -> None:
    if isinstance(task, GenerationTaskConfig) and task.json_schema is not None and head.text_decoding is None:
        raise SpecError(
            f"json_schema: {task.model} cannot restrict its replies, as its layers have no keys and values to decode with "
            "in slots; use a model with attention, or leave json_schema out"
        )

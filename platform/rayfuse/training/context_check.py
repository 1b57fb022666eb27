"""Check before the first step that prompts and replies fit into the context of their language model."""

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities import build_modality
from rayfuse.model.fused import task_heads
from rayfuse.model.language_model import is_sharded
from rayfuse.model.tasks import TaskHead
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig, TaskConfig


def check_context_lengths(job: Job, model: nn.Module) -> None:
    """Raise DataError if the longest prompt and reply of a task exceed the positions of its language model.

    The number of soft tokens of an encoder without a fixed one is that of its longest value; with sharded weights,
    which cannot run here, one, and the step that exceeds the positions raises the error. Raises SpecError if a model
    cannot restrict its replies to a JSON schema.
    """
    for name, head in task_heads(model).items():
        lengths = {
            span: _encoded_length(job, model, span)
            if span in head.encoded_inputs
            else _span_length(job, model, span)
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


def _span_length(job: Job, model: nn.Module, name: str) -> int:
    options = job.inputs[name]
    per_value = job.align_of(name).tokens_per_value
    if per_value is None:
        per_value = _encoded_length(job, model, name) if options.encoder.outputs_tokens else 1
    return per_value * options.max_items


def _encoded_length(job: Job, model: nn.Module, name: str) -> int:
    encoder = model.get_submodule(f"encoders.{name}")
    if is_sharded(encoder):
        return 1
    modality = build_modality(job.inputs[name])
    features = modality.collate([modality.longest_features()])
    was_training = encoder.training
    with torch.no_grad():
        tokens, _ = encoder.eval()(**{key: torch.as_tensor(value) for key, value in features.items()})
    encoder.train(was_training)
    return int(tokens.shape[1])

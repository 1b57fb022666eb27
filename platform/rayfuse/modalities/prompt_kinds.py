"""Choice of the prompts that fit the model of a generation task."""

from collections.abc import Mapping

from rayfuse.modalities.pretrained import load_config
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.modalities.transcripts import TranscriptRenderer
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig


def renderer_class(task: GenerationTaskConfig) -> type[PromptRenderer]:
    """Return the renderer that fits a task and its model. Raises DataError if its configuration cannot be read."""
    if task.reads is not None:
        return TranscriptRenderer
    return SourcePromptRenderer if load_config(task.model).is_encoder_decoder else PromptRenderer


def build_renderer(task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> PromptRenderer:
    """Return the renderer of a task's prompts. Raises DataError if the model's configuration cannot be read."""
    return renderer_class(task)(task, inputs)

"""Choice of the prompts that fit the model of a generation task."""

from collections.abc import Mapping
from typing import Any

from rayfuse.errors import SpecError
from rayfuse.modalities.pretrained import load_config
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.modalities.transcripts import TranscriptRenderer
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig
from rayfuse.spec.tasks.injection import CrossAttentionInjection


def renderer_class(task: GenerationTaskConfig) -> type[PromptRenderer]:
    """Return the renderer that fits a task and its model.

    Raises DataError if its configuration cannot be read, SpecError if no gated layers can be added to it.
    """
    if task.reads is not None:
        return TranscriptRenderer
    config = load_config(task.model)
    if isinstance(task.inject, CrossAttentionInjection):
        _check_gated_layers(task.inject, task.model, config)
    return SourcePromptRenderer if config.is_encoder_decoder else PromptRenderer


def _check_gated_layers(inject: CrossAttentionInjection, model: str, config: Any) -> None:
    if config.is_encoder_decoder:
        raise SpecError(
            f"inject: cross_attention needs a causal language model, and {model} is an encoder–decoder model, whose decoder "
            "attends to its own encoder; use inject: soft_tokens"
        )
    layers = config.get_text_config().num_hidden_layers
    if inject.every > layers:
        raise SpecError(
            f"inject.every: {inject.every} is above the {layers} layers of {model}; use {layers} or less"
        )


def build_renderer(task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> PromptRenderer:
    """Return the renderer of a task's prompts. Raises DataError if the model's configuration cannot be read."""
    return renderer_class(task)(task, inputs)

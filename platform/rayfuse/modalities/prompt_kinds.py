"""Choice of the prompts that fit the model of a generation task."""

from collections.abc import Mapping
from typing import Any

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.image_prompts import ImagePromptRenderer
from rayfuse.modalities.pretrained import load_config
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.modalities.transcripts import TranscriptRenderer
from rayfuse.modalities.vision_language import IMAGE_FRAMES, is_vision_language_model
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig
from rayfuse.spec.tasks.injection import CrossAttentionInjection

_READERS: dict[type[PromptRenderer], str] = {TranscriptRenderer: "audio", ImagePromptRenderer: "image"}
"""Renderers of models that read the encoder of an input, with the type of that input."""


def renderer_class(task: GenerationTaskConfig) -> type[PromptRenderer]:
    """Return the renderer that fits a task and its model.

    Raises DataError if the model's configuration cannot be read, or if it cannot be used with `reads`; SpecError if no gated
    layers can be added to it.
    """
    config = load_config(task.model)
    if isinstance(task.inject, CrossAttentionInjection):
        _check_gated_layers(task.inject, task.model, config)
    if task.reads is None:
        return SourcePromptRenderer if config.is_encoder_decoder else PromptRenderer
    if is_vision_language_model(config):
        return ImagePromptRenderer
    if config.model_type == "whisper":
        return TranscriptRenderer
    raise DataError(
        f"{task.model}: a {config.model_type} model cannot be used with reads; use a Whisper model for audio, and for "
        f"images one of type {', '.join(IMAGE_FRAMES)}"
    )


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
    """Return the renderer of a task's prompts.

    Raises DataError if the model's configuration cannot be read, or if it does not read the input of `reads`.
    """
    renderer = renderer_class(task)
    wanted = _READERS.get(renderer)
    if task.reads is not None and inputs[task.reads].type != wanted:
        raise DataError(
            f"{task.model}: this model reads {wanted}, and `{task.reads}` is an input of type "
            f"{inputs[task.reads].type}; name one of type {wanted}, or use another model"
        )
    return renderer(task, inputs)

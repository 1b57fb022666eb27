"""Choice of the reading that fits a generation task and its model."""

from rayfuse.modalities.image_prompts import ImagePromptRenderer
from rayfuse.modalities.prompt_kinds import renderer_class
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.modalities.transcripts import TranscriptRenderer
from rayfuse.model.tasks.cross_attention_reading import CrossAttentionReading
from rayfuse.model.tasks.prompt_reading import (
    CausalReading,
    EncoderDecoderReading,
    PromptReading,
    VisionLanguageReading,
)
from rayfuse.model.tasks.transcript_reading import TranscriptReading
from rayfuse.spec.tasks import GenerationTaskConfig

_READINGS: dict[tuple[type[PromptRenderer], str], type[PromptReading]] = {
    (PromptRenderer, "soft_tokens"): CausalReading,
    (PromptRenderer, "cross_attention"): CrossAttentionReading,
    (SourcePromptRenderer, "soft_tokens"): EncoderDecoderReading,
    (TranscriptRenderer, "soft_tokens"): TranscriptReading,
    (ImagePromptRenderer, "soft_tokens"): VisionLanguageReading,
}


def reading_class(task: GenerationTaskConfig) -> type[PromptReading]:
    """Return the class that fits a task and its model.

    Raises DataError if its configuration cannot be read, SpecError if no gated layers can be added to it.
    """
    return _READINGS[renderer_class(task), task.inject.type]

"""Prompts of vision–language models, in which an image is a span of tokens from the encoder of an input."""

from collections.abc import Mapping
from typing import Any

from rayfuse.errors import DataError
from rayfuse.modalities.pretrained import load_config
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.vision_language import IMAGE_FRAMES
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig


class ImagePromptRenderer(PromptRenderer):
    """Prompts of a vision–language model, with its special tokens around the image that it reads."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> None:
        super().__init__(task, inputs)
        assert task.reads is not None
        self.encoded_inputs = (task.reads,)
        self._source: Any = inputs[task.reads]
        self._frames = {task.reads: IMAGE_FRAMES[load_config(task.model).model_type]}

    def check_context(self, span_tokens: int) -> None:
        """Raise DataError if the encoder of the image belongs to another model, or a sequence exceeds the positions."""
        mine, other = load_config(self._task.model), load_config(self._source.encoder.model)
        if (mine.model_type, _width(mine)) != (other.model_type, _width(other)):
            raise DataError(
                f"{self._task.model}: the encoder of `{self.encoded_inputs[0]}`, {self._source.encoder.model}, is not the "
                "image part of this model; use the same model in both"
            )
        super().check_context(span_tokens)


def _width(config: Any) -> Any:
    return getattr(config.get_text_config(), "hidden_size", None)

"""The inputs of a model: where each comes from, and how it is prepared."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rayfuse.spec.augment import AudioAugment, ImageAugment, TextAugment
from rayfuse.spec.base import Part, column_may_be_left_out
from rayfuse.spec.encoders import AudioEncoder, ImageEncoder, TextEncoder


class _Input(Part):
    model_config = ConfigDict(json_schema_extra=column_may_be_left_out)

    column: str = Field(min_length=1)
    """Column of the rows; the input's own name where absent."""
    optional: bool = False
    """Rows and requests may leave this input out."""
    max_items: int = Field(1, ge=1, le=256)
    """Above 1, rows and requests give a list of up to so many values, such as several pictures."""


class ImageInput(_Input):
    """A picture: anything Pillow reads."""

    type: Literal["image"]
    encoder: ImageEncoder
    size: int = Field(224, ge=8, le=4096)
    """Pictures are resized to size × size pixels (a Hugging Face encoder's own processor decides instead)."""
    augment: list[ImageAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""


class AudioInput(_Input):
    """Sound: anything libsndfile reads, mixed down to one channel."""

    type: Literal["audio"]
    encoder: AudioEncoder
    sample_rate: int = Field(16000, ge=1000, le=192000)
    """Samples per second after resampling."""
    max_seconds: float = Field(10.0, gt=0, le=3600)
    """Longer clips are cut, shorter ones padded with silence."""
    augment: list[AudioAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""


class TextInput(_Input):
    """A text, tokenized by the encoder's own tokenizer; `conv` reads UTF-8 bytes."""

    type: Literal["text"]
    encoder: TextEncoder
    max_tokens: int = Field(128, ge=1, le=32768)
    """Longer texts are cut."""
    augment: list[TextAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""


Input = Annotated[ImageInput | AudioInput | TextInput, Field(discriminator="type")]

"""The inputs of a model: where each comes from, how it is prepared, and what encodes it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rayfuse.spec.base import Block, ModelRef, column_may_be_left_out


class Lora(Block):
    """Low-rank adapters on a pretrained encoder (Hu et al., 2021)."""

    r: int = Field(8, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(16, gt=0)
    """Scale: an adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter: names, or `all-linear`."""
    layers: int | None = Field(None, ge=1)
    """Adapters in this many of the last layers only, which costs less: gradients stop there. All where absent."""


class ConvEncoder(Block):
    """A small convolutional network, trained from scratch."""

    type: Literal["conv"]
    width: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first layer, in fours; deeper layers have two and four times as many."""
    dropout: float = Field(0.1, ge=0, lt=1)


class HuggingFaceEncoder(Block):
    """A pretrained encoder from a Hugging Face folder or hub."""

    type: Literal["huggingface"]
    model: ModelRef
    train: Literal["frozen", "lora", "full"] = "frozen"
    """What is trained: nothing, LoRA adapters, or everything."""
    lora: Lora = Lora()
    """Used with `train: lora`."""
    pool: Literal["mean", "first", "none"] = "mean"
    """How the encoder's outputs become one vector; `none` hands every position to the fusion."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of this encoder; the optimizer's where absent."""


Encoder = Annotated[ConvEncoder | HuggingFaceEncoder, Field(discriminator="type")]


class _Input(Block):
    model_config = ConfigDict(json_schema_extra=column_may_be_left_out)

    column: str = Field(min_length=1)
    """Column of the rows; the input's own name where absent."""
    encoder: Encoder
    optional: bool = False
    """Rows and requests may leave this input out."""


class ImageInput(_Input):
    """A picture: anything Pillow reads."""

    type: Literal["image"]
    size: int = Field(224, ge=8, le=4096)
    """Pictures are resized to size × size pixels (a Hugging Face encoder's own processor decides instead)."""


class AudioInput(_Input):
    """Sound: anything libsndfile reads, mixed down to one channel."""

    type: Literal["audio"]
    sample_rate: int = Field(16000, ge=1000, le=192000)
    """Samples per second after resampling."""
    max_seconds: float = Field(10.0, gt=0, le=3600)
    """Longer clips are cut, shorter ones padded with silence."""


class TextInput(_Input):
    """A text, tokenized by the encoder's own tokenizer; `conv` reads UTF-8 bytes."""

    type: Literal["text"]
    max_tokens: int = Field(128, ge=1, le=32768)
    """Longer texts are cut."""


Input = Annotated[ImageInput | AudioInput | TextInput, Field(discriminator="type")]

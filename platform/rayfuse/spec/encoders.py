"""What encodes one input: built-in networks trained from scratch, and pretrained ones."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.base import Block, ModelRef, Part
from rayfuse.spec.custom import Custom, builtin_or_custom


class _Encoder(Part):
    lr: float | None = Field(None, gt=0)
    """Learning rate of this encoder; the optimizer's where absent."""


class CustomEncoder(Custom, _Encoder):
    """A subclass of rayfuse.model.encoders.Encoder, by import path."""


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


class ConvEncoder(_Encoder):
    """A small convolutional network, trained from scratch."""

    type: Literal["conv"]
    width: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first layer, in fours; deeper layers have two and four times as many."""
    dropout: float = Field(0.1, ge=0, lt=1)


class HuggingFaceEncoder(_Encoder):
    """A pretrained encoder from a Hugging Face folder or hub."""

    type: Literal["huggingface"]
    model: ModelRef
    train: Literal["frozen", "lora", "full"] = "frozen"
    """What is trained: nothing, LoRA adapters, or everything."""
    lora: Lora = Lora()
    """Used with `train: lora`."""
    pool: Literal["mean", "first", "none"] = "mean"
    """How the encoder's outputs become one vector; `none` hands every position to the fusion."""


_ImageEncoder = Annotated[ConvEncoder | HuggingFaceEncoder, Field(discriminator="type")]
_AudioEncoder = Annotated[ConvEncoder | HuggingFaceEncoder, Field(discriminator="type")]
_TextEncoder = Annotated[ConvEncoder | HuggingFaceEncoder, Field(discriminator="type")]
_Own = Annotated[CustomEncoder, Tag("custom")]

ImageEncoder = Annotated[Annotated[_ImageEncoder, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]
AudioEncoder = Annotated[Annotated[_AudioEncoder, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]
TextEncoder = Annotated[Annotated[_TextEncoder, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]
VideoEncoder = CustomEncoder
SeriesEncoder = CustomEncoder
TableEncoder = CustomEncoder
SequenceEncoder = CustomEncoder
Encoder = ConvEncoder | HuggingFaceEncoder | CustomEncoder
"""Any of them."""

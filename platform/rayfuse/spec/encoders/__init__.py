"""What encodes one input: built-in networks trained from scratch, and pretrained ones."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.custom import builtin_or_custom
from rayfuse.spec.encoders.adapters import IA3, OFT, Lora
from rayfuse.spec.encoders.base import CustomEncoder, EncoderPart, LayeredEncoder, Pool
from rayfuse.spec.encoders.huggingface import HuggingFaceEncoder
from rayfuse.spec.encoders.pictures import ConvEncoder, PatchTransformerEncoder, ResnetEncoder
from rayfuse.spec.encoders.steps import (
    EmbeddingEncoder,
    GRUEncoder,
    LSTMEncoder,
    MelGRUEncoder,
    MelLSTMEncoder,
    MelTransformerEncoder,
    SeriesConvEncoder,
    SeriesGRUEncoder,
    SeriesLSTMEncoder,
    SeriesTransformerEncoder,
    TransformerEncoder,
)
from rayfuse.spec.encoders.tables import MLPEncoder
from rayfuse.spec.encoders.videos import FramesEncoder, ImageEncoder

_Own = Annotated[CustomEncoder, Tag("custom")]

_Audio = Annotated[
    ConvEncoder | ResnetEncoder | MelGRUEncoder | MelLSTMEncoder | MelTransformerEncoder | HuggingFaceEncoder,
    Field(discriminator="type"),
]
AudioEncoder = Annotated[Annotated[_Audio, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]

_Text = Annotated[
    ConvEncoder | GRUEncoder | LSTMEncoder | TransformerEncoder | HuggingFaceEncoder,
    Field(discriminator="type"),
]
TextEncoder = Annotated[Annotated[_Text, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]

_Series = Annotated[
    SeriesConvEncoder | SeriesGRUEncoder | SeriesLSTMEncoder | SeriesTransformerEncoder,
    Field(discriminator="type"),
]
SeriesEncoder = Annotated[Annotated[_Series, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]

TableEncoder = Annotated[Annotated[MLPEncoder, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]

_Sequence = Annotated[EmbeddingEncoder | GRUEncoder | TransformerEncoder, Field(discriminator="type")]
SequenceEncoder = Annotated[Annotated[_Sequence, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]

VideoEncoder = Annotated[Annotated[FramesEncoder, Tag("builtin")] | _Own, Discriminator(builtin_or_custom)]


def encoders_in(encoder: EncoderPart) -> Iterator[tuple[tuple[str, ...], EncoderPart]]:
    """An encoder's block and those inside it, outer ones first, each with its path below the outermost."""
    yield (), encoder
    if isinstance(encoder, FramesEncoder):
        yield from ((("encoder", *path), part) for path, part in encoders_in(encoder.encoder))


def pretrained_in(encoder: Any) -> Iterator[tuple[tuple[str, ...], HuggingFaceEncoder]]:
    """The pretrained encoders that an encoder's block names, each with its path below it."""
    return ((path, part) for path, part in encoders_in(encoder) if isinstance(part, HuggingFaceEncoder))


__all__ = [
    "IA3",
    "OFT",
    "AudioEncoder",
    "ConvEncoder",
    "CustomEncoder",
    "EmbeddingEncoder",
    "EncoderPart",
    "FramesEncoder",
    "GRUEncoder",
    "HuggingFaceEncoder",
    "ImageEncoder",
    "LSTMEncoder",
    "LayeredEncoder",
    "Lora",
    "MLPEncoder",
    "PatchTransformerEncoder",
    "Pool",
    "ResnetEncoder",
    "SequenceEncoder",
    "SeriesConvEncoder",
    "SeriesEncoder",
    "TableEncoder",
    "TextEncoder",
    "TransformerEncoder",
    "VideoEncoder",
    "encoders_in",
    "pretrained_in",
]

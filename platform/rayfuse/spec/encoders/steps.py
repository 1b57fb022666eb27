"""Options of the built-in encoders of whatever comes in steps: bytes, frames of sound, readings, items."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.encoders.base import EncoderPart, LayeredEncoder, Pool, WidthInHeads


class _Recurrent(EncoderPart):
    width: int = Field(64, ge=4, le=4096)
    """Width of the state; twice as much is handed on where it is bidirectional."""
    layers: int = Field(1, ge=1, le=16)
    bidirectional: bool = True
    """Read the steps in both directions."""
    dropout: float = Field(0.1, ge=0, lt=1)
    pool: Pool = "mean"


class GRUEncoder(_Recurrent):
    """Gated recurrent units (Cho et al., 2014), trained from scratch."""

    type: Literal["gru"]


class LSTMEncoder(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), trained from scratch."""

    type: Literal["lstm"]


class TransformerEncoder(WidthInHeads, LayeredEncoder):
    """A small Transformer (Vaswani et al., 2017), trained from scratch."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    dropout: float = Field(0.1, ge=0, lt=1)
    pool: Pool = "mean"


class TemporalConvEncoder(EncoderPart):
    """Dilated convolutions over time with residual connections (Bai et al., 2018), trained from scratch."""

    type: Literal["conv"]
    width: int = Field(64, ge=4, le=4096)
    """Channels of every layer."""
    layers: int = Field(4, ge=1, le=16)
    """Each layer sees twice as far as the one before."""
    dropout: float = Field(0.1, ge=0, lt=1)
    pool: Pool = "mean"


class _Strided(EncoderPart):
    stride: int = Field(1, ge=1, le=1024)
    """Steps that a first convolution merges into one: long inputs become cheaper."""


class SeriesConvEncoder(_Strided, TemporalConvEncoder):
    """Dilated convolutions over the readings of all channels."""


class SeriesGRUEncoder(_Strided, GRUEncoder):
    """Gated recurrent units over the readings of all channels."""


class SeriesLSTMEncoder(_Strided, LSTMEncoder):
    """Long short-term memory over the readings of all channels."""


class SeriesTransformerEncoder(_Strided, TransformerEncoder):
    """A small Transformer over the readings of all channels."""


class _MelStrided(EncoderPart):
    stride: int = Field(4, ge=1, le=1024)
    """Frames of the spectrogram that a first convolution merges into one step."""


class MelGRUEncoder(_MelStrided, GRUEncoder):
    """Gated recurrent units over a log-mel spectrogram."""


class MelLSTMEncoder(_MelStrided, LSTMEncoder):
    """Long short-term memory over a log-mel spectrogram."""


class MelTransformerEncoder(_MelStrided, TransformerEncoder):
    """A small Transformer over a log-mel spectrogram."""


class EmbeddingEncoder(EncoderPart):
    """The mean of the items' embeddings, in which older items count less: (1 + age in seconds)^-λ, λ learned."""

    type: Literal["embedding"]
    width: int = Field(64, ge=4, le=4096)
    """Width of an item's embedding."""
    dropout: float = Field(0.1, ge=0, lt=1)
    pool: Literal["mean", "none"] = "mean"
    """`none` hands every item to the fusion."""

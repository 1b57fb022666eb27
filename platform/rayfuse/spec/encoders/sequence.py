"""Options of the built-in encoders of sequences: bytes, audio frames, time series and items."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.base import JobSection
from rayfuse.spec.encoders.base import BaseEncoderConfig, LayeredEncoderConfig, MultiHeadEncoderConfig, Pool


class RecurrentEncoderConfig(BaseEncoderConfig):
    """Options of a recurrent network."""

    hidden_size: int = Field(64, ge=4, le=4096)
    """Width of the state; outputs are twice as wide if it is bidirectional."""
    layers: int = Field(1, ge=1, le=16)
    """Number of recurrent layers."""
    bidirectional: bool = True
    """Read the steps in both directions."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate between layers and on the outputs."""
    pool: Pool = "mean"
    """Pooling of the steps to one vector; `none` passes every step to the fusion."""


class GRUEncoderConfig(RecurrentEncoderConfig):
    """Gated recurrent units (Cho et al., 2014), trained from scratch."""

    type: Literal["gru"]


class LSTMEncoderConfig(RecurrentEncoderConfig):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), trained from scratch."""

    type: Literal["lstm"]


class TransformerEncoderConfig(MultiHeadEncoderConfig, LayeredEncoderConfig):
    """A small transformer (Vaswani et al., 2017), trained from scratch."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    """Number of transformer layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""
    pool: Pool = "mean"
    """Pooling of the tokens to one vector; `none` passes every token to the fusion."""


class TemporalConvEncoderConfig(BaseEncoderConfig):
    """Dilated convolutions over time with residual connections (Bai et al., 2018), trained from scratch."""

    type: Literal["conv"]
    hidden_size: int = Field(64, ge=4, le=4096)
    """Channels of every layer."""
    layers: int = Field(4, ge=1, le=16)
    """Number of layers; each doubles the receptive field."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""
    pool: Pool = "mean"
    """Pooling of the steps to one vector; `none` passes every step to the fusion."""


class StridedEncoderConfig(JobSection):
    """Options of an encoder with a strided convolution first."""

    stride: int = Field(1, ge=1, le=1024)
    """Steps that a first convolution merges into one, to make long inputs cheaper."""


class TimeseriesConvEncoderConfig(StridedEncoderConfig, TemporalConvEncoderConfig):
    """Dilated convolutions over all channels of a time series."""


class TimeseriesGRUEncoderConfig(StridedEncoderConfig, GRUEncoderConfig):
    """Gated recurrent units over all channels of a time series."""


class TimeseriesLSTMEncoderConfig(StridedEncoderConfig, LSTMEncoderConfig):
    """Long short-term memory over all channels of a time series."""


class TimeseriesTransformerEncoderConfig(StridedEncoderConfig, TransformerEncoderConfig):
    """A small transformer over all channels of a time series."""


class MelStridedEncoderConfig(JobSection):
    """Options of an encoder with a strided convolution over the frames of a spectrogram first."""

    stride: int = Field(4, ge=1, le=1024)
    """Frames of the spectrogram that a first convolution merges into one step."""


class MelGRUEncoderConfig(MelStridedEncoderConfig, GRUEncoderConfig):
    """Gated recurrent units over a log-mel spectrogram."""


class MelLSTMEncoderConfig(MelStridedEncoderConfig, LSTMEncoderConfig):
    """Long short-term memory over a log-mel spectrogram."""


class MelTransformerEncoderConfig(MelStridedEncoderConfig, TransformerEncoderConfig):
    """A small transformer over a log-mel spectrogram."""


class EmbeddingEncoderConfig(BaseEncoderConfig):
    """The mean of the items' embeddings, weighted by recency: (1 + age in seconds)^-λ, with a learned λ."""

    type: Literal["embedding"]
    hidden_size: int = Field(64, ge=4, le=4096)
    """Width of an item's embedding."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the outputs."""
    pool: Literal["mean", "none"] = "mean"
    """Pooling of the items to one vector; `none` passes every item to the fusion."""

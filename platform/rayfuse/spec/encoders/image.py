"""Options of the built-in encoders of images."""

from typing import Annotated, Literal

from pydantic import Field

from rayfuse.spec.encoders.base import BaseEncoderConfig
from rayfuse.spec.encoders.sequence import TransformerEncoderConfig

MapPool = Literal["mean", "max", "attention", "none"]
"""Pooling of the positions of a feature map to one vector; `none` passes every position to the fusion."""


class ConvEncoderConfig(BaseEncoderConfig):
    """A small convolutional network, trained from scratch."""

    type: Literal["conv"]
    hidden_size: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first layer, a multiple of 4; deeper layers have two and four times as many."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate before the last layer."""


class ResnetEncoderConfig(BaseEncoderConfig):
    """Residual blocks of convolutions with group norm (He et al., 2016), trained from scratch."""

    type: Literal["resnet"]
    hidden_size: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first stage, a multiple of 4; each further stage has twice as many at half the resolution."""
    depths: list[Annotated[int, Field(ge=1, le=64)]] = Field([2, 2, 2], min_length=1, max_length=6)
    """Residual blocks of each stage."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the outputs."""
    pool: MapPool = "mean"
    """Pooling of the positions of the last feature map to one vector; `none` passes all to the fusion."""


class PatchTransformerEncoderConfig(TransformerEncoderConfig):
    """A transformer over square patches of an image (ViT; Dosovitskiy et al., 2021), trained from scratch."""

    patch_size: int = Field(8, ge=2, le=256)
    """Side of a patch in pixels; images are padded to whole patches."""

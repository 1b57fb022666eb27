"""Options of the built-in encoders of pictures."""

from typing import Annotated, Literal

from pydantic import Field

from rayfuse.spec.encoders.base import EncoderPart
from rayfuse.spec.encoders.steps import TransformerEncoder

MapPool = Literal["mean", "max", "attention", "none"]
"""How the positions of a map become one vector; `none` hands every position to the fusion."""


class ConvEncoder(EncoderPart):
    """A small convolutional network, trained from scratch."""

    type: Literal["conv"]
    width: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first layer, in fours; deeper layers have two and four times as many."""
    dropout: float = Field(0.1, ge=0, lt=1)


class ResnetEncoder(EncoderPart):
    """Residual blocks of convolutions (He et al., 2016) with group norm, trained from scratch."""

    type: Literal["resnet"]
    width: int = Field(32, ge=4, le=1024, multiple_of=4)
    """Channels of the first stage, in fours; each further stage has twice as many at half the resolution."""
    blocks: list[Annotated[int, Field(ge=1, le=64)]] = Field([2, 2, 2], min_length=1, max_length=6)
    """Residual blocks of each stage."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On what is handed on."""
    pool: MapPool = "mean"


class PatchTransformerEncoder(TransformerEncoder):
    """A Transformer over square patches of a picture (ViT, Dosovitskiy et al., 2021), trained from scratch."""

    patch: int = Field(8, ge=2, le=256)
    """Side of a patch in pixels; pictures are padded to whole patches."""

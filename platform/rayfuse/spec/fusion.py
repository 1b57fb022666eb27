"""How encoded inputs are brought to one width and joined."""

from typing import Annotated, Literal

from pydantic import Field

from rayfuse.spec.base import Block, NotBuiltYet


class LinearAlign(Block):
    """One linear map and a layer norm per input, to a common width."""

    type: Literal["linear"] = "linear"
    dim: int = Field(128, ge=8, le=8192)
    """The common width."""
    loss: NotBuiltYet = None
    """Auxiliary loss that pulls the inputs of a row together."""


class ConcatFusion(Block):
    """One vector per input, side by side, through a multilayer perceptron."""

    type: Literal["concat"]
    hidden: int = Field(256, ge=8)
    layers: int = Field(2, ge=1, le=8)
    dropout: float = Field(0.1, ge=0, lt=1)


class TransformerFusion(Block):
    """Self-attention over the tokens of all inputs and a summary token; absent inputs are masked."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)


Align = LinearAlign
Fusion = Annotated[ConcatFusion | TransformerFusion, Field(discriminator="type")]

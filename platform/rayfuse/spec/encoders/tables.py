"""Options of the built-in encoder of table columns."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.encoders.base import EncoderPart


class MLPEncoder(EncoderPart):
    """A multilayer perceptron over numbers, flags of what is missing, and embeddings of categories."""

    type: Literal["mlp"]
    width: int = Field(64, ge=4, le=4096)
    layers: int = Field(2, ge=1, le=16)
    """Layers; from the second on with a residual connection."""
    embedding: int = Field(8, ge=1, le=1024)
    """Width of a category's embedding."""
    dropout: float = Field(0.1, ge=0, lt=1)

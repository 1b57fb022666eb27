"""Options of the built-in encoder of tabular inputs."""

from typing import Literal

from pydantic import Field

from rayfuse.spec.encoders.base import BaseEncoderConfig


class MLPEncoderConfig(BaseEncoderConfig):
    """A multilayer perceptron over numbers, missing-value flags, and embeddings of categories."""

    type: Literal["mlp"]
    hidden_size: int = Field(64, ge=4, le=4096)
    """Width of the layers and of the output."""
    layers: int = Field(2, ge=1, le=16)
    """Number of layers; from the second on with a residual connection."""
    embedding: int = Field(8, ge=1, le=1024)
    """Width of a category's embedding."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""

"""Small convolutional image encoder."""

import torch

from rayfuse.model.encoders.base import Encoder, conv_stack
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import ConvEncoderConfig
from rayfuse.spec.inputs import ImageInput


class ConvImageEncoder(Encoder):
    """Encoder of pixel_values: float (rows, 3, height, width) → (rows, 1, 4 × `hidden_size`)."""

    def __init__(self, options: ConvEncoderConfig, source: ImageInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.hidden_size
        self.layers = conv_stack(3, options.hidden_size, options.dropout)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(self.layers(pixel_values))

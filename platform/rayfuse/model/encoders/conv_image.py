"""A small convolutional encoder of pictures."""

import torch

from rayfuse.model.encoders.base import Encoder, Tokens, conv_stack, one_token
from rayfuse.spec.inputs import ConvEncoder, ImageInput


class ConvImageEncoder(Encoder):
    """pixel_values: float (rows, 3, height, width) → one token of 4 × `width`."""

    def __init__(self, options: ImageInput) -> None:
        super().__init__(options)
        assert isinstance(options.encoder, ConvEncoder)
        self.width = 4 * options.encoder.width
        self.layers = conv_stack(3, options.encoder.width, options.encoder.dropout)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        return one_token(self.layers(pixel_values))

"""A small convolutional encoder of pictures."""

import torch

from rayfuse.model.encoders.base import Encoder, conv_stack
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import ConvEncoder
from rayfuse.spec.inputs import ImageInput


class ConvImageEncoder(Encoder):
    """pixel_values: float (rows, 3, height, width) → one token of 4 × `width`."""

    def __init__(self, options: ConvEncoder, source: ImageInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.width
        self.layers = conv_stack(3, options.width, options.dropout)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        return one_token(self.layers(pixel_values))

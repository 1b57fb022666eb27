"""A small convolutional encoder of sound, over a log-mel spectrogram."""

import torch

from rayfuse.model.encoders.base import Encoder, conv_stack
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import ConvEncoder
from rayfuse.spec.inputs import AudioInput


class ConvAudioEncoder(Encoder):
    """mel: float (rows, bands, frames), as `rayfuse.modalities.mel` makes them → one token of 4 × `width`."""

    def __init__(self, options: ConvEncoder, source: AudioInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.width
        self.layers = conv_stack(1, options.width, options.dropout, first_stride=2)

    def forward(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        return one_token(self.layers(mel.unsqueeze(1)))

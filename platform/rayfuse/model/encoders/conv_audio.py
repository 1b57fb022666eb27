"""Small convolutional audio encoder."""

import torch

from rayfuse.model.encoders.base import Encoder, conv_stack
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import ConvEncoderConfig
from rayfuse.spec.inputs import AudioInput


class ConvAudioEncoder(Encoder):
    """Encoder of mel: float (rows, bands, frames) of `rayfuse.modalities.mel` → (rows, 1, 4 × `hidden_size`)."""

    def __init__(self, options: ConvEncoderConfig, source: AudioInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.hidden_size
        self.layers = conv_stack(1, options.hidden_size, options.dropout, first_stride=2)

    def forward(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(self.layers(mel.unsqueeze(1)))

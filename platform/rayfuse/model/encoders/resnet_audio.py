"""A residual network for sound, over a log-mel spectrogram as a picture of one channel."""

import torch

from rayfuse.model.encoders.resnet_image import ResnetImageEncoder
from rayfuse.model.tokens import Tokens


class ResnetAudioEncoder(ResnetImageEncoder):
    """mel: float (rows, bands, frames) → the last stage's map, band by band, pooled as the spec says."""

    channels = 1

    def forward(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        return super().forward(mel.unsqueeze(1))

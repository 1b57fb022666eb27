"""Residual network for audio."""

import torch

from rayfuse.model.encoders.resnet_image import ResnetImageEncoder
from rayfuse.model.tokens import Tokens


class ResnetAudioEncoder(ResnetImageEncoder):
    """Encoder of mel: float (rows, bands, frames), as an image of one channel; the last feature map is pooled."""

    channels = 1

    def forward(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        return super().forward(mel.unsqueeze(1))

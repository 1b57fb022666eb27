"""Built-in encoders of sound that read a log-mel spectrogram frame by frame."""

from typing import Any

import torch

from rayfuse.model.encoders.networks import Strided
from rayfuse.model.encoders.steps import StepsEncoder
from rayfuse.model.tokens import Tokens


class StepsAudioEncoder(StepsEncoder):
    """mel: float (rows, bands, frames); `stride` frames become one step."""

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.merge = Strided(_bands(source), options.width, options.stride)

    def read(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        everything = torch.ones(len(mel), mel.shape[2], dtype=torch.bool, device=mel.device)
        return self.merge(mel.transpose(1, 2), everything)


def _bands(source: Any) -> int:
    return int(source.mels)

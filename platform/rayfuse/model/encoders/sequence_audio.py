"""Built-in sequence encoders of audio over the frames of a log-mel spectrogram."""

from typing import Any

import torch

from rayfuse.model.encoders.networks import StridedConv
from rayfuse.model.encoders.sequence_base import SequenceEncoder
from rayfuse.model.tokens import Tokens
from rayfuse.spec.inputs import AudioInput


class SequenceAudioEncoder(SequenceEncoder):
    """Encoder of mel: float (rows, bands, frames); `stride` frames become one step."""

    def __init__(self, options: Any, source: AudioInput) -> None:
        super().__init__(options, source)
        self.downsample = StridedConv(source.n_mels, options.hidden_size, options.stride)

    def embed(self, mel: torch.Tensor) -> Tokens:  # type: ignore[override]
        mask = torch.ones(mel.shape[0], mel.shape[2], dtype=torch.bool, device=mel.device)
        return self.downsample(mel.transpose(1, 2), mask)

"""A small convolutional encoder of sound, over a log-mel spectrogram."""

import torch

from rayfuse.model.encoders.base import Encoder, conv_stack
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import ConvEncoder
from rayfuse.spec.inputs import AudioInput

_MELS = 40
_WINDOW_SECONDS = 0.032
_HOP_SECONDS = 0.010


class ConvAudioEncoder(Encoder):
    """waveform: float (rows, samples) in [-1, 1] → one token of 4 × `width`.

    The spectrogram has 40 mel bands (Slaney's scale) of 32 ms windows every 10 ms, in natural logarithm,
    each clip shifted and scaled to mean 0 and deviation 1, so that loudness does not matter.
    """

    bands: torch.Tensor
    window: torch.Tensor

    def __init__(self, options: ConvEncoder, source: AudioInput) -> None:
        super().__init__(options, source)
        from transformers.audio_utils import mel_filter_bank

        self.hop = round(source.sample_rate * _HOP_SECONDS)
        self.window_length = 2 ** round(source.sample_rate * _WINDOW_SECONDS - 1).bit_length()
        bands = mel_filter_bank(
            num_frequency_bins=self.window_length // 2 + 1,
            num_mel_filters=_MELS,
            min_frequency=0.0,
            max_frequency=source.sample_rate / 2,
            sampling_rate=source.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("bands", torch.tensor(bands, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)
        self.width = 4 * options.width
        self.layers = conv_stack(1, options.width, options.dropout, first_stride=2)

    def forward(self, waveform: torch.Tensor) -> Tokens:  # type: ignore[override]
        return one_token(self.layers(self.spectrogram(waveform).unsqueeze(1)))

    def spectrogram(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 (rows, 40, frames), whatever the precision of the layers."""
        with torch.autocast(waveform.device.type, enabled=False):
            frequencies = torch.stft(
                waveform.float(),
                self.window_length,
                self.hop,
                window=self.window,
                center=True,
                pad_mode="constant",  # reflecting needs a clip longer than half a window
                return_complex=True,
            )
            power = frequencies.abs().square()
            mels = (self.bands.T @ power + 1e-6).log()
            mean = mels.mean(dim=(1, 2), keepdim=True)
            deviation = mels.std(dim=(1, 2), keepdim=True)
            return (mels - mean) / (deviation + 1e-3)

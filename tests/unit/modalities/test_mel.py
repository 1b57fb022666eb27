"""Spectrograms compared with those of torch."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from rayfuse.modalities.mel import log_mel


def tone(pitch: float, rate: int = 8000, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate).astype(np.float32)


def reference(waveform: np.ndarray, rate: int, bands: int) -> torch.Tensor:
    """Compute the reference with torch."""
    window = 2 ** round(rate * 0.032 - 1).bit_length()
    filters = mel_filter_bank(
        num_frequency_bins=window // 2 + 1,
        num_mel_filters=bands,
        min_frequency=0.0,
        max_frequency=rate / 2,
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    spectrum = torch.stft(
        torch.from_numpy(waveform),
        window,
        round(rate * 0.010),
        window=torch.hann_window(window),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    mels = (torch.tensor(filters, dtype=torch.float32).T @ spectrum.abs().square() + 1e-6).log()
    return (mels - mels.mean()) / (mels.std() + 1e-3)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize(("rate", "bands"), [(8000, 40), (16000, 40), (16000, 80), (22050, 64), (44100, 40)])
def test_the_spectrogram_equals_that_of_torch(rate: int, bands: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    for waveform in (noise, tone(440, rate), noise[: rate // 7]):
        found = log_mel(waveform, rate, bands)
        assert found.dtype == np.float32
        torch.testing.assert_close(
            torch.from_numpy(found), reference(waveform, rate, bands), atol=2e-3, rtol=1e-3
        )


def test_the_spectrogram_depends_on_pitch_and_not_on_loudness() -> None:
    low, high = log_mel(tone(200), 8000, 40), log_mel(tone(2000), 8000, 40)
    assert low.shape == (40, 101)
    assert low.mean(axis=1).argmax() < high.mean(axis=1).argmax()
    noise = np.random.default_rng(0).random(8000, dtype=np.float32) - 0.5
    np.testing.assert_allclose(log_mel(noise / 3, 8000, 40), log_mel(noise, 8000, 40), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("samples", [1, 5, 8000])
def test_silence_is_finite(samples: int) -> None:
    assert np.isfinite(log_mel(np.zeros(samples, dtype=np.float32), 8000, 40)).all()

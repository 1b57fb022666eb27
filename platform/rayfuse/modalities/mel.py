"""Log-mel spectrograms in NumPy."""

from functools import cache

import numpy as np

_WINDOW_SECONDS = 0.032
_HOP_SECONDS = 0.010
_FRAMES_AT_ONCE = 10_000
"""Frames whose spectrum is in memory: it has 25 times the size of the mel bands."""
_LINEAR_MAX_HZ, _MELS_PER_HZ, _LOG_STEP = 1000.0, 3 / 200, np.log(6.4) / 27


def log_mel(waveform: np.ndarray, sample_rate: int, n_mels: int) -> np.ndarray:
    """Compute the log-mel spectrogram of a clip, float32 (samples,) in [-1, 1].

    Returns float32 (n_mels, 1 + samples // hop) with mean 0 and standard deviation 1 per clip, so that loudness does
    not matter. Bands follow Slaney's mel scale (Auditory Toolbox, 1998) with equal areas, over Hann windows of 32 ms
    (rounded to a power of two samples) every 10 ms, padded with silence at both ends; natural logarithm.
    """
    window = 2 ** round(sample_rate * _WINDOW_SECONDS - 1).bit_length()
    hop = round(sample_rate * _HOP_SECONDS)
    padded = np.pad(waveform.astype(np.float32, copy=False), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    mels = np.empty((n_mels, len(frames)), dtype=np.float32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        power = _power_spectrum(frames[start : start + _FRAMES_AT_ONCE] * _hann_window(window))
        mels[:, start : start + _FRAMES_AT_ONCE] = _mel_filter_bank(sample_rate, window, n_mels) @ power.T
    mels += np.float32(1e-6)
    np.log(mels, out=mels)
    deviation = mels.std(ddof=1) if mels.size > 1 else 0
    return ((mels - mels.mean()) / (deviation + 1e-3)).astype(np.float32)


def _power_spectrum(frames: np.ndarray) -> np.ndarray:
    from scipy.fft import rfft

    spectrum = rfft(frames, axis=1)
    power: np.ndarray = spectrum.real**2 + spectrum.imag**2
    return power


@cache
def _hann_window(length: int) -> np.ndarray:
    """Return the periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@cache
def _mel_filter_bank(sample_rate: int, window: int, n_mels: int) -> np.ndarray:
    """Return triangular filters of area 1 on the mel scale, float32 (n_mels, window // 2 + 1)."""
    points = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2))
    frequencies = np.linspace(0.0, sample_rate / 2, window // 2 + 1)
    low, middle, high = (points[i : n_mels + i, None] for i in range(3))
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles.astype(np.float32)


def _hz_to_mel(hertz: float) -> float:
    """Convert hertz to Slaney's mel scale: linear up to 1 kHz, logarithmic above."""
    if hertz < _LINEAR_MAX_HZ:
        return hertz * _MELS_PER_HZ
    return float(_LINEAR_MAX_HZ * _MELS_PER_HZ + np.log(hertz / _LINEAR_MAX_HZ) / _LOG_STEP)


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    edge = _LINEAR_MAX_HZ * _MELS_PER_HZ
    return np.where(mels < edge, mels / _MELS_PER_HZ, _LINEAR_MAX_HZ * np.exp(_LOG_STEP * (mels - edge)))

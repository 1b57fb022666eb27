"""Log-mel spectrograms, in numpy: made once per clip and kept, instead of in every epoch."""

from functools import cache

import numpy as np

_WINDOW_SECONDS = 0.032
_HOP_SECONDS = 0.010
_LINEAR_UNTIL, _MELS_PER_HZ, _LOG_STEP = 1000.0, 3 / 200, np.log(6.4) / 27


def log_mel(waveform: np.ndarray, rate: int, bands: int) -> np.ndarray:
    """float32 (samples,) in [-1, 1] → float32 (bands, 1 + samples // hop), shifted and scaled to mean 0, deviation 1.

    Mel bands of Slaney's scale (Auditory Toolbox, 1998), of equal area, over Hann windows of 32 ms (rounded to a
    power of two of samples) every 10 ms, with silence beyond both ends; in natural logarithm. As each clip is scaled
    by itself, loudness does not matter.
    """
    window = 2 ** round(rate * _WINDOW_SECONDS - 1).bit_length()
    hop = round(rate * _HOP_SECONDS)
    padded = np.pad(waveform.astype(np.float32), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    mels = np.log(_filters(rate, window, bands) @ _power(frames * _hann(window)).T + np.float32(1e-6))
    deviation = mels.std(ddof=1) if mels.size > 1 else 0
    return ((mels - mels.mean()) / (deviation + 1e-3)).astype(np.float32)


def _power(frames: np.ndarray) -> np.ndarray:
    from scipy.fft import rfft

    spectrum = rfft(frames, axis=1)
    power: np.ndarray = spectrum.real**2 + spectrum.imag**2
    return power


@cache
def _hann(length: int) -> np.ndarray:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@cache
def _filters(rate: int, window: int, bands: int) -> np.ndarray:
    """float32 (bands, window // 2 + 1): triangles between neighbouring points of the mel scale, each of area 1."""
    points = _hertz(np.linspace(0.0, _mels(rate / 2), bands + 2))
    frequencies = np.linspace(0.0, rate / 2, window // 2 + 1)
    low, middle, high = (points[i : bands + i, None] for i in range(3))
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles.astype(np.float32)


def _mels(hertz: float) -> float:
    """Slaney's scale: linear up to 1 kHz, logarithmic above."""
    if hertz < _LINEAR_UNTIL:
        return hertz * _MELS_PER_HZ
    return float(_LINEAR_UNTIL * _MELS_PER_HZ + np.log(hertz / _LINEAR_UNTIL) / _LOG_STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
    edge = _LINEAR_UNTIL * _MELS_PER_HZ
    return np.where(mels < edge, mels / _MELS_PER_HZ, _LINEAR_UNTIL * np.exp(_LOG_STEP * (mels - edge)))

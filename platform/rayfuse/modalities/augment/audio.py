"""Random changes of sound: of spectrograms, float32 (bands, frames), and of waveforms, float32 (samples,)."""

from collections.abc import Callable

import numpy as np

from rayfuse.errors import SpecError
from rayfuse.modalities.augment.base import block, with_noise
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import GainAudio, MaskAudio, Noise, ShiftAudio


def mask(options: MaskAudio, features: Features, chance: np.random.Generator) -> Features:
    """Masked bands and frames get the spectrogram's mean."""

    def masked(array: np.ndarray) -> np.ndarray:
        if array.ndim == 1:
            raise SpecError(
                "augment: `mask` blanks bands and frames, and this input's features are a waveform"
            )
        array, mean = array.copy(), array.mean()
        for _ in range(options.count):
            array[block(array.shape[0], options.bands, chance)] = mean
            array[:, block(array.shape[1], options.frames, chance)] = mean
        return array

    return _change(features, masked)


def shift(options: ShiftAudio, features: Features, chance: np.random.Generator) -> Features:
    share = chance.uniform(-options.share, options.share)
    return _change(features, lambda array: np.roll(array, round(share * array.shape[-1]), axis=-1))


def gain(options: GainAudio, features: Features, chance: np.random.Generator) -> Features:
    factor = np.float32(10 ** (chance.uniform(-options.decibels, options.decibels) / 20))

    def louder(array: np.ndarray) -> np.ndarray:
        if array.ndim > 1:
            raise SpecError("augment: `gain` is for waveforms, and this input's features are a spectrogram")
        return array * factor

    return _change(features, louder)


def noise(options: Noise, features: Features, chance: np.random.Generator) -> Features:
    return _change(features, lambda array: with_noise(array, options.sigma, chance))


def _change(features: Features, change: Callable[[np.ndarray], np.ndarray]) -> Features:
    """Change what is sound, and leave masks as they are."""
    return {name: change(array) if array.dtype.kind == "f" else array for name, array in features.items()}

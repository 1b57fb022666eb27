"""Augmentations of audio: of spectrograms, float32 (bands, frames), and of waveforms, float32 (samples,)."""

from collections.abc import Callable

import numpy as np

from rayfuse.errors import SpecError
from rayfuse.modalities.augment.base import add_gaussian_noise, random_span
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import GainAudio, GaussianNoise, ShiftAudio, SpecAugmentAudio


def spec_augment(options: SpecAugmentAudio, features: Features, rng: np.random.Generator) -> Features:
    """Mask bands and frames with the spectrogram's mean (SpecAugment, Park et al., 2019).

    Raises SpecError for a waveform.
    """

    def masked(array: np.ndarray) -> np.ndarray:
        if array.ndim == 1:
            raise SpecError(
                "augment: `spec_augment` is for spectrograms, and the features of this input are a waveform; remove it"
            )
        array, mean = array.copy(), array.mean()
        for _ in range(options.num_masks):
            array[random_span(array.shape[0], options.freq_mask_ratio, rng)] = mean
            array[:, random_span(array.shape[1], options.time_mask_ratio, rng)] = mean
        return array

    return _apply(features, masked)


def shift(options: ShiftAudio, features: Features, rng: np.random.Generator) -> Features:
    """Roll along the time axis by a random fraction of the duration; padding stays where it is."""
    fraction = rng.uniform(-options.max_shift, options.max_shift)
    mask = features.get("attention_mask")

    def rolled(array: np.ndarray) -> np.ndarray:
        length = array.shape[-1] if mask is None else int(mask.sum())
        array = array.copy()
        array[..., :length] = np.roll(array[..., :length], round(fraction * length), axis=-1)
        return array

    return _apply(features, rolled)


def gain(options: GainAudio, features: Features, rng: np.random.Generator) -> Features:
    """Change the volume of a waveform by a random gain in dB. Raises SpecError for a spectrogram."""
    factor = np.float32(10 ** (rng.uniform(-options.max_gain_db, options.max_gain_db) / 20))

    def louder(array: np.ndarray) -> np.ndarray:
        if array.ndim > 1:
            raise SpecError(
                "augment: `gain` is for waveforms, and the features of this input are a spectrogram; remove it"
            )
        return array * factor

    return _apply(features, louder)


def gaussian_noise(options: GaussianNoise, features: Features, rng: np.random.Generator) -> Features:
    """Add Gaussian noise."""
    return _apply(features, lambda array: add_gaussian_noise(array, options.sigma, rng))


def _apply(features: Features, fn: Callable[[np.ndarray], np.ndarray]) -> Features:
    """Change floating-point features, and leave masks unchanged."""
    return {name: fn(array) if array.dtype.kind == "f" else array for name, array in features.items()}

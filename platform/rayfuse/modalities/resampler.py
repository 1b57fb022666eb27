"""Resampling of a clip that is read in blocks, in memory that depends on its length at the target rate only."""

from fractions import Fraction
from typing import Any

import numpy as np

_MAX_DENOMINATOR = 10_000
_CHUNK_SAMPLES = 1_000_000
_HALF_LENGTH = 10
"""Half the length of the filter of `scipy.signal.resample_poly`, in samples of the lower rate."""


class Resampler:
    """Polyphase resampling, as `scipy.signal.resample_poly` of the whole clip."""

    def __init__(self, rate: int, target_rate: int) -> None:
        # An odd rate such as 44101 would need a filter of a million taps; the error of this ratio is below 0.01%.
        ratio = Fraction(target_rate, rate).limit_denominator(_MAX_DENOMINATOR)
        self._is_identity = rate == target_rate
        self._up, self._down = ratio.numerator, ratio.denominator
        reach = _HALF_LENGTH * max(self._up, self._down) / self._up + 1
        self._margin = self._whole_steps(reach)
        self._chunk = self._whole_steps(_CHUNK_SAMPLES)
        self._context = 0  # samples at the beginning of the pending ones that are resampled already
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._done: list[np.ndarray] = [np.empty(0, dtype=np.float32)]

    def add(self, samples: np.ndarray) -> None:
        """Add the next samples of the clip, float32 (samples,)."""
        if self._is_identity:
            self._done.append(samples)
            return
        self._pending.append(samples)
        self._num_pending += len(samples)
        if self._num_pending >= self._context + self._chunk + self._margin:
            self._resample(is_last=False)

    def finish(self) -> np.ndarray:
        """Return the clip at the target rate, float32 (samples,)."""
        if self._num_pending > self._context:
            self._resample(is_last=True)
        return np.concatenate(self._done) if len(self._done) != 2 else self._done[1]

    def _resample(self, is_last: bool) -> None:
        """Resample the pending samples but those at the end whose result depends on later ones."""
        samples = np.concatenate(self._pending)
        found = np.asarray(_resample_poly(samples, self._up, self._down), dtype=np.float32)
        stop = len(samples)
        if not is_last:
            stop = (len(samples) - self._margin) // self._down * self._down
        first, last = (place * self._up // self._down for place in (self._context, stop))
        self._done.append(found[first:].copy() if is_last else found[first:last].copy())
        kept = max(0, stop - self._margin)
        self._context = stop - kept
        self._pending = [samples[kept:]]
        self._num_pending = len(self._pending[0])

    def _whole_steps(self, samples: float) -> int:
        """Round up to a multiple of the denominator, at which samples of both rates coincide."""
        return -int(-samples // self._down) * self._down


def _resample_poly(samples: np.ndarray, up: int, down: int) -> Any:
    from scipy.signal import resample_poly

    return resample_poly(samples, up, down)

"""Clips that are read in blocks are resampled as whole ones."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

from rayfuse.modalities.resampler import Resampler


@pytest.mark.parametrize(
    ("rate", "target", "length"),
    [
        (44_100, 16_000, 2_100_000),
        (44_101, 16_000, 1_500_000),
        (8000, 16_000, 2_000_001),
        (1, 8000, 3),
        (655_350, 8000, 2_500_000),
    ],
)
def test_blocks_are_resampled_as_the_whole(rate: int, target: int, length: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=length).astype(np.float32)
    resampler = Resampler(rate, target)
    for block in np.split(samples, np.sort(rng.integers(0, length, 9))):
        resampler.add(block)
    ratio = Fraction(target, rate).limit_denominator(10_000)
    np.testing.assert_array_equal(
        resampler.finish(), resample_poly(samples, ratio.numerator, ratio.denominator)
    )


def test_equal_rates_leave_samples_unchanged() -> None:
    resampler = Resampler(8000, 8000)
    for block in ([1.0, 2.0], [3.0]):
        resampler.add(np.array(block, dtype=np.float32))
    assert resampler.finish().tolist() == [1, 2, 3]


def test_a_clip_without_samples() -> None:
    assert not len(Resampler(8000, 16_000).finish())

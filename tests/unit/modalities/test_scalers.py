"""Incremental fit of scales: exact for few numbers, approximate for sampled ones."""

import numpy as np
import pytest

from rayfuse.modalities.scalers import RobustFitter, ScalerFitter, StandardFitter


def fitted(kind: type[ScalerFitter], numbers: np.ndarray, parts: int) -> ScalerFitter:
    found = kind()
    for part in np.array_split(numbers, parts):
        found.partial_fit(part)
    return found


@pytest.mark.parametrize("parts", [1, 7, 2000])
def test_the_fit_does_not_depend_on_chunks(parts: int) -> None:
    numbers = np.random.default_rng(0).normal(3, 2, 1500)
    assert fitted(StandardFitter, numbers, parts).center_and_scale() == pytest.approx(
        (numbers.mean(), numbers.std()), rel=1e-12
    )
    low, middle, high = np.percentile(numbers, (25, 50, 75))
    assert fitted(RobustFitter, numbers, parts).center_and_scale() == pytest.approx(
        (middle, (high - low) / 1.349), rel=1e-12
    )
    assert fitted(RobustFitter, numbers, parts).count == 1500


def test_sampling_is_deterministic_and_accurate() -> None:
    numbers = np.sort(np.random.default_rng(0).normal(3, 2, 400_000))
    found = [fitted(RobustFitter, numbers, parts).center_and_scale() for parts in (10, 10, 3)]
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx((3, 2), abs=0.05)


def test_equal_numbers_have_scale_1() -> None:
    for kind in (StandardFitter, RobustFitter):
        assert fitted(kind, np.full(10, 7.0), 3).center_and_scale() == (7.0, 1.0)
    mostly = np.array([1.0] * 90 + [5.0] * 10)
    assert fitted(RobustFitter, mostly, 4).center_and_scale() == pytest.approx((1.0, mostly.std()))

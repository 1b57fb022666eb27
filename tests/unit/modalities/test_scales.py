"""Scales of numbers that come in parts: exact while they are few, and near where they are sampled."""

import numpy as np
import pytest

from rayfuse.modalities.scales import Moments, Numbers, Sampled


def told(kind: type[Numbers], numbers: np.ndarray, parts: int) -> Numbers:
    found = kind()
    for part in np.array_split(numbers, parts):
        found.add(part)
    return found


@pytest.mark.parametrize("parts", [1, 7, 2000])
def test_parts_do_not_matter(parts: int) -> None:
    numbers = np.random.default_rng(0).normal(3, 2, 1500)
    assert told(Moments, numbers, parts).scale() == pytest.approx((numbers.mean(), numbers.std()), rel=1e-12)
    low, middle, high = np.percentile(numbers, (25, 50, 75))
    assert told(Sampled, numbers, parts).scale() == pytest.approx((middle, (high - low) / 1.349), rel=1e-12)
    assert told(Sampled, numbers, parts).count == 1500


def test_a_sample_of_many_is_the_same_every_time_and_near() -> None:
    numbers = np.sort(np.random.default_rng(0).normal(3, 2, 400_000))
    found = [told(Sampled, numbers, parts).scale() for parts in (10, 10, 3)]
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx((3, 2), abs=0.05)


def test_numbers_that_are_all_the_same_have_scale_1() -> None:
    for kind in (Moments, Sampled):
        assert told(kind, np.full(10, 7.0), 3).scale() == (7.0, 1.0)
    mostly = np.array([1.0] * 90 + [5.0] * 10)
    assert told(Sampled, mostly, 4).scale() == pytest.approx((1.0, mostly.std()))

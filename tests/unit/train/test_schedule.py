"""The learning rate at every step."""

from math import cos, pi

import pytest

from rayfuse.spec.train import Schedule
from rayfuse.train.schedule import rate_factor


def factors(total: int, kind: str = "cosine", warmup: float = 0.0) -> list[float]:
    schedule = Schedule.model_validate({"type": kind, "warmup": warmup})
    return [rate_factor(schedule, step, total) for step in range(total)]


def test_cosine_by_hand() -> None:
    assert factors(4) == pytest.approx([1, 0.5 * (1 + cos(pi / 4)), 0.5, 0.5 * (1 + cos(3 * pi / 4))])


def test_warm_up_rises_in_equal_parts_to_the_whole_rate() -> None:
    found = factors(100, warmup=0.1)
    assert found[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert found[10] == max(found) == 1
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.001


def test_constant() -> None:
    assert factors(10, "constant", 0.2) == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 997])
def test_never_zero_and_never_above_one(total: int, warmup: float, kind: str) -> None:
    found = factors(total, kind, warmup)
    assert all(0 < factor <= 1 for factor in found)

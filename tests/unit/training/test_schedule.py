"""The learning rate at every step."""

from math import cos, pi, sqrt
from typing import Any

import pytest
from pydantic import TypeAdapter

from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.schedule import lr_factor


def factors(total: int, kind: str = "cosine", warmup: float = 0.0, **options: Any) -> list[float]:
    schedule = TypeAdapter(ScheduleConfig).validate_python({"type": kind, "warmup": warmup, **options})
    return [lr_factor(schedule, step, total) for step in range(total)]


def test_cosine_by_hand() -> None:
    assert factors(4) == pytest.approx([1, 0.5 * (1 + cos(pi / 4)), 0.5, 0.5 * (1 + cos(3 * pi / 4))])


def test_warm_up_is_linear() -> None:
    found = factors(100, warmup=0.1)
    assert found[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert found[10] == max(found) == 1
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.001


def test_constant() -> None:
    assert factors(10, "constant", 0.2) == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


def test_linear_decays_to_the_minimum() -> None:
    assert factors(4, "linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(4, "linear", min_lr_ratio=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert factors(1000, "cosine", min_lr_ratio=0.1)[-1] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("form", "falling"),
    [
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("sqrt", [1, 0.5, 1 - sqrt(0.5), 1 - sqrt(0.75)]),
        ("cosine", [1, 0.5 * (1 + cos(pi / 4)), 0.5, 0.5 * (1 + cos(3 * pi / 4))]),
    ],
)
def test_stable_until_the_decay(form: str, falling: list[float]) -> None:
    found = factors(20, "wsd", 0.1, decay_ratio=0.2, decay_shape=form)
    assert found == pytest.approx([1 / 3, 2 / 3, *[1] * 14, *falling])


def test_warm_up_in_steps() -> None:
    assert factors(100, warmup=10) == factors(100, warmup=0.1)
    assert factors(5, "constant", 10) == pytest.approx([(step + 1) / 11 for step in range(5)])
    assert factors(10, "wsd", 9, decay_ratio=0.5, decay_shape="linear")[8:] == [0.9, 1]  # warm-up comes first


def test_cosine_is_the_default() -> None:
    assert TypeAdapter(ScheduleConfig).validate_python({}).type == "cosine"


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.9, 3])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 997])
def test_never_zero_and_never_above_one(total: int, warmup: float, kind: str) -> None:
    found = factors(total, kind, warmup)
    assert all(0 < factor <= 1 for factor in found)

"""When to stop early."""

import math

import pytest

from rayfuse.training.early_stopping import best_epoch, should_stop

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.3, 0.2], "max", 1),
        ([0.1, 0.3, 0.2], "min", 0),
        ([0.3, 0.5, 0.5, 0.4], "max", 1),
        ([2.0, 1.0, 1.0], "min", 1),
        ([NAN, 0.1, NAN], "max", 1),
        ([NAN, 0.1, NAN], "min", 1),
        ([NAN, NAN], "max", 0),
        ([-math.inf, -5.0], "max", 1),
        ([7.0], "min", 0),
    ],
)
def test_the_best_epoch(values: list[float], mode: str, best: int) -> None:
    assert best_epoch(values, mode) == best  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "patience", "stop"),
    [
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.5, 0.5], 2, True),
        ([0.1, 0.2, 0.3, 0.4], 1, False),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.5, NAN, NAN], 2, True),
        ([NAN, 0.1], 1, False),
        ([NAN, NAN, NAN], 2, True),
    ],
)
def test_stopping(values: list[float], patience: int, stop: bool) -> None:
    assert should_stop(values, "max", patience) is stop
    assert should_stop([-value for value in values], "min", patience) is stop

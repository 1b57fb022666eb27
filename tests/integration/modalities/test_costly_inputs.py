"""Bombs take little memory, and are rejected for what they would take; the slow ones are in `tests/fuzz`."""

from typing import Any

import costly_inputs
import pytest

QUICK = [name for name, bomb in costly_inputs.BOMBS.items() if not bomb.is_slow]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    return costly_inputs.measure_in_child(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_costly_inputs(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    costly_inputs.check(outcomes[name])

"""All bombs, most of which take some time to make."""

from typing import Any

import costly_inputs
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    return costly_inputs.measure_in_child(costly_inputs.BOMBS)


@pytest.mark.parametrize("name", costly_inputs.BOMBS)
def test_costly_inputs(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    costly_inputs.check(outcomes[name])

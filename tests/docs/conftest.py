"""An environment for pages of the docs."""

import os

import pytest
from ray_fixtures import AS_OTHER_PROCESSES


@pytest.fixture
def outside_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of Ray and MLflow, so that a page starts as on a new machine."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "RAYFUSE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(*AS_OTHER_PROCESSES)

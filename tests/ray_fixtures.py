"""One Ray for all tests of a process: its own ports, token and folder, stopped at the end.

A fixture of tests/conftest.py: Ray reads a token once per process, so that a second cluster could not be joined.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rayfuse.cluster.local import LocalCluster

AS_OTHER_PROCESSES = ("RAY_worker_niceness", "0")
"""Ray's workers are nice by default: they would wait for a test that runs at the same time."""


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LocalCluster"]:
    """Start a cluster of four CPUs, and set RAY_ADDRESS and its token in the environment of this process."""
    from rayfuse.cluster import local

    state = tmp_path_factory.mktemp("ray-state")
    with pytest.MonkeyPatch.context() as patch:  # so that submitted jobs find this Rayfuse
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        cluster = local.start(state, num_cpus=4)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            _apply_ray_settings(patch)
            yield cluster
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
    finally:
        local.stop(state)


def _apply_ray_settings(patch: pytest.MonkeyPatch) -> None:
    """Apply settings that Ray reads when it is imported, as another test may have imported it."""
    if "ray" in sys.modules:
        from ray._private import ray_constants
        from ray._raylet import Config

        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        Config.initialize("")


@pytest.fixture
def outside_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return an environment without the variables of Ray, but the priority of its workers."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(*AS_OTHER_PROCESSES)
    return dict(os.environ)

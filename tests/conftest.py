"""Markers by folder, and fixtures for all tests."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from ray_fixtures import AS_OTHER_PROCESSES, outside_ray, ray_cluster

__all__ = ["outside_ray", "ray_cluster"]
ROOT = Path(__file__).parents[1]
MARKED_FOLDERS = ("ray", "k8s", "browser", "gpu")


def pytest_configure() -> None:
    """Restore the handling of SIGINT in processes that tests start; background jobs of a shell ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault(*AS_OTHER_PROCESSES)
    gc.disable()  # until all tests are collected: imports create objects that stay


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


def pytest_collection_finish() -> None:
    """Freeze imported modules and collected tests, so that the garbage collector skips them."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # tests allocate much and leave little
    gc.enable()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Freeze what the tests of a module have imported, or unfrozen."""
    if nextitem is None or nextitem.path != item.path:
        gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the top folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder SHARED, by default `../shared`: real data and tools that exist next to some checkouts."""
    folder = Path(os.environ.get("SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder

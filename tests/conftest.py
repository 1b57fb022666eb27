"""What all tests share: the marker of their folder, and the data that lies beside some checkouts."""

import gc
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKED_FOLDERS = ("ray", "k8s", "browser", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays to the end: Python need not look through it again."""
    gc.collect()
    gc.freeze()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared`: real data and tools that lie beside some checkouts."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return folder

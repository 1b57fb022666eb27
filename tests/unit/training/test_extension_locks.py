"""Removal of stale build locks."""

import os
import time
from pathlib import Path

import pytest

from rayfuse.training.extension_locks import find_stale_locks, remove_stale_locks


def lock_of(folder: Path, minutes: float) -> Path:
    """Make a lock below `folder` whose build wrote its last file `minutes` ago."""
    build = folder / "py311_cpu" / "async_io"
    build.mkdir(parents=True)
    for path in (build / "lock", build / "main.o"):
        path.touch()
    for path in (build / "lock", build / "main.o", build):
        os.utime(path, (time.time() - 60 * minutes,) * 2)
    return build / "lock"


def test_an_old_lock_without_a_holder_is_stale(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, 11)
    assert find_stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path / "home") == [lock]
    assert find_stale_locks({}, tmp_path) == []


def test_in_the_home_folder(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / ".cache/torch_extensions", 11)
    assert find_stale_locks({}, tmp_path) == [lock]


def test_a_running_build_keeps_its_lock(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, 60)
    with lock.open():
        assert find_stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path) == []
    (lock.parent / "more.o").touch()  # by a builder on another machine
    assert find_stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path) == []


def test_removed_locks_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = lock_of(tmp_path, 11)
    remove_stale_locks()
    assert not lock.exists()
    assert f"Removed the lock {lock} of a killed build" in caplog.text

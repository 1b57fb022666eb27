"""Which locks of builds are stale."""

import os
import time
from pathlib import Path

import pytest

from rayfuse.train.build_locks import remove_stale, stale_locks


def lock_of(folder: Path, minutes: float) -> Path:
    """A lock below `folder` whose build last wrote something so long ago."""
    build = folder / "py311_cpu" / "async_io"
    build.mkdir(parents=True)
    for path in (build / "lock", build / "main.o"):
        path.touch()
    for path in (build / "lock", build / "main.o", build):
        os.utime(path, (time.time() - 60 * minutes,) * 2)
    return build / "lock"


def test_a_lock_that_nobody_holds(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, 11)
    assert stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path / "home") == [lock]
    assert stale_locks({}, tmp_path) == []


def test_in_the_home_folder(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / ".cache/torch_extensions", 11)
    assert stale_locks({}, tmp_path) == [lock]


def test_a_build_that_goes_on(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, 60)
    with lock.open():
        assert stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path) == []
    (lock.parent / "more.o").touch()  # by a builder on another machine
    assert stale_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path) == []


def test_they_are_removed_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = lock_of(tmp_path, 11)
    remove_stale()
    assert not lock.exists()
    assert f"{lock}: left by a build that was killed" in caplog.text

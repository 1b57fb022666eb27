"""Folders that belong to processes: whoever uses one holds a lock beside it, and what nobody holds may go.

A process that was killed holds nothing, so that the next one clears up after it.
"""

import fcntl
import shutil
from pathlib import Path
from typing import IO

_SUFFIX = ".lock"


def hold(folder: Path) -> IO[bytes]:
    """Keep a folder, which need not exist yet, until the returned file is closed or this process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(folder.name + _SUFFIX).open("ab")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def hold_alone(path: Path) -> IO[bytes]:
    """Wait until no other process holds a file, and hold it until it is closed."""
    lock = path.open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def clear_unused(parent: Path) -> None:
    """Remove the folders below `parent` that were held once and that nobody holds now."""
    for path in parent.glob(f"*{_SUFFIX}"):
        try:
            with path.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
        except OSError:  # held, or of another user
            continue

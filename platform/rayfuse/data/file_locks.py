"""Folders with an owner: a process locks the folders it uses, and folders that no process locks are removed.

The operating system drops the locks of a killed process, so that the next process removes its folders.
"""

import fcntl
import shutil
from pathlib import Path
from typing import IO

_SUFFIX = ".lock"


def lock_shared(folder: Path) -> IO[bytes]:
    """Lock a folder, which need not exist yet, until the returned file is closed or this process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(folder.name + _SUFFIX).open("ab")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def lock_exclusive(path: Path) -> IO[bytes]:
    """Wait for the exclusive lock of a file, and hold it until the returned file is closed."""
    lock = path.open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def remove_orphans(parent: Path) -> None:
    """Remove the folders below `parent` that were locked once and that no process locks now."""
    for path in parent.glob(f"*{_SUFFIX}"):
        try:
            with path.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
        except OSError:  # locked, or owned by another user
            continue


def release_shared(lock: IO[bytes], parent: Path) -> None:
    """Unlock a folder below `parent`; the last process that uses it removes it."""
    lock.close()
    remove_orphans(parent)

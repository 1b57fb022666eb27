"""Locks that a killed build of a torch extension left behind: every later build would wait on them for ever."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_QUIET_SECONDS = 600.0
"""A build writes to its folder more often than that; the builder may be on another machine that shares it."""

_LOG = logging.getLogger(__name__)


def stale_locks(environment: Mapping[str, str], home: Path, processes: Path = Path("/proc")) -> list[Path]:
    """Locks of builds that nobody works on: no process here holds them, and their folder is long unchanged."""
    set_by_user = environment.get("TORCH_EXTENSIONS_DIR")
    top = Path(set_by_user) if set_by_user else home / ".cache" / "torch_extensions"
    locks = [lock for lock in top.glob("**/lock") if lock.is_file() and _quiet(lock)]
    held = set(_open_files(processes)) if locks else set()
    return sorted(lock for lock in locks if str(lock.resolve()) not in held)


def remove_stale() -> None:
    """Remove such locks, each with a line in the log."""
    for lock in stale_locks(os.environ, Path.home()):
        _LOG.warning(
            "%s: left by a build that was killed; removed, or this start would wait on it for ever", lock
        )
        lock.unlink(missing_ok=True)


def _quiet(lock: Path) -> bool:
    latest = max(
        part.stat().st_mtime for part in (lock, lock.parent, *lock.parent.iterdir()) if part.exists()
    )
    return time.time() - latest > _QUIET_SECONDS


def _open_files(processes: Path) -> Iterator[str]:
    """Files that processes of this user hold open, where the system tells."""
    for link in processes.glob("[0-9]*/fd/*"):
        try:
            yield os.readlink(link)
        except OSError:  # ended, or another user's
            continue

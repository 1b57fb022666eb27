"""Remove locks that killed builds of torch extensions left behind, on which every later build would wait forever."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_STALE_SECONDS = 600.0
"""A running build, possibly on another machine that shares the folder, writes to it more often than this."""

_LOG = logging.getLogger(__name__)


def find_stale_locks(
    environment: Mapping[str, str], home: Path, proc_dir: Path = Path("/proc")
) -> list[Path]:
    """Return the locks that no process on this machine has open and whose folder has not changed for ten minutes."""
    set_by_user = environment.get("TORCH_EXTENSIONS_DIR")
    top = Path(set_by_user) if set_by_user else home / ".cache" / "torch_extensions"
    locks = [lock for lock in top.glob("**/lock") if lock.is_file() and _is_stale(lock)]
    held = set(_open_files(proc_dir)) if locks else set()
    return sorted(lock for lock in locks if str(lock.resolve()) not in held)


def remove_stale_locks() -> None:
    """Remove stale locks and log a warning for each."""
    for lock in find_stale_locks(os.environ, Path.home()):
        _LOG.warning("Removed the lock %s of a killed build, on which DeepSpeed would wait forever", lock)
        lock.unlink(missing_ok=True)


def _is_stale(lock: Path) -> bool:
    latest = max(
        part.stat().st_mtime for part in (lock, lock.parent, *lock.parent.iterdir()) if part.exists()
    )
    return time.time() - latest > _STALE_SECONDS


def _open_files(proc_dir: Path) -> Iterator[str]:
    """Yield the files that processes of this user have open, on systems with /proc."""
    for link in proc_dir.glob("[0-9]*/fd/*"):
        try:
            yield os.readlink(link)
        except OSError:  # the process ended or is another user's
            continue

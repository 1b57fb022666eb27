"""Ends a worker that makes no progress, and says where its threads were.

When one rank hangs, all wait for it in a collective: each rank's own watchdog sees that, so the stacks of all of them
are told. Ray Train then starts the workers anew, from the last checkpoint.
"""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType

_EXIT = 70
_GRACE_SECONDS = 5.0
"""For the words to reach the driver, and for ranks that noticed later."""


class Watchdog:
    """Watches from a thread while it is entered; `beat` says that there was progress."""

    def __init__(self, seconds: float | None, tell: Callable[[str], None]) -> None:
        self.seconds, self._tell = seconds, tell
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self.seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self.seconds is not None
        while not self._done.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self.seconds:
                self._end(silent)
            # Where no Python thread can run any more, this one neither, C code ends the process.
            faulthandler.dump_traceback_later(self.seconds + 4 * _GRACE_SECONDS, exit=True)
        faulthandler.cancel_dump_traceback_later()

    def _end(self, silent: float) -> None:
        self._tell(f"no progress for {silent:.1f} s (compute.hang_timeout); its threads:\n{stacks()}")
        time.sleep(_GRACE_SECONDS)
        os._exit(_EXIT)


def stacks() -> str:
    """Where each thread of this process is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()

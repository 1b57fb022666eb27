"""End a worker that makes no progress, and log where its threads are.

When one rank hangs, all others wait for it in a collective. The watchdog of each rank notices, so the stacks of all
ranks are logged. Ray Train then restarts the workers from the last checkpoint.
"""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType

_EXIT_CODE = 70
_GRACE_SECONDS = 5.0
"""Time for the message to reach the driver, and for ranks that notice later."""


class Watchdog:
    """Context that ends the process if `heartbeat` is not called for `timeout` seconds; None: never."""

    def __init__(
        self,
        timeout: float | None,
        log: Callable[[str, int], None] = lambda text, step: None,
        grace: float = _GRACE_SECONDS,
    ) -> None:
        """`log` gets the stacks and the last step; the process ends `grace` seconds later."""
        self._timeout, self._log, self._grace = timeout, log, grace
        self._step = 0
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def heartbeat(self, step: int = 0) -> None:
        """Note that there was progress: `step` optimizer steps are done."""
        self._last, self._step = time.monotonic(), step

    def __enter__(self) -> "Watchdog":
        self.heartbeat(self._step)
        if self._timeout:
            self._thread = threading.Thread(
                target=self._watch, args=(self._timeout,), name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, timeout: float) -> None:
        while not self._done.wait(min(1.0, timeout / 4)):
            idle = time.monotonic() - self._last
            if idle > timeout:
                self._terminate(idle)
            # If no Python thread can run any more, not even this one, C code ends the process.
            faulthandler.dump_traceback_later(timeout + 4 * self._grace, exit=True)
        faulthandler.cancel_dump_traceback_later()

    def _terminate(self, idle: float) -> None:
        message = (
            f"no progress for {idle:.1f} s (compute.hang_timeout); threads of the worker:\n{format_stacks()}"
        )
        self._log(message, self._step)
        time.sleep(self._grace)
        os._exit(_EXIT_CODE)


def format_stacks() -> str:
    """Return the stack of each thread of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()

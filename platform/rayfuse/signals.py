"""Signals that end a command, as exceptions: SIGTERM and SIGHUP do what Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminationSignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised in the main thread."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def signum_of(error: BaseException) -> int:
    """Return the signal behind an interrupt: Ray turns SIGTERM into SystemExit where it has installed its handler."""
    if isinstance(error, TerminationSignal):
        return error.signum
    return signal.SIGTERM if isinstance(error, SystemExit) else signal.SIGINT


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Raise TerminationSignal on SIGTERM and SIGHUP. Signals that are ignored, as by `nohup`, stay so.

    Does nothing outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, _: FrameType | None) -> None:
        raise TerminationSignal(signum)

    replaced = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]
    for kind in replaced:
        signal.signal(kind, interrupt)
    try:
        yield
    finally:
        for kind in replaced:
            signal.signal(kind, signal.SIG_DFL)

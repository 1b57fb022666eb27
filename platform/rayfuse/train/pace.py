"""A thread that works a little at a time, so that work beside it is not slowed down."""

import threading
import time

_LONGEST = 10.0
"""Seconds of pauses in all: a large piece of work must not take for ever."""


class Pace:
    """Lets a thread take a share of one processor's time, until somebody waits for it. A share of 1: without pauses."""

    def __init__(self, share: float) -> None:
        self._share, self._left = share, _LONGEST
        self._hurried = threading.Event()
        self._since = 0.0

    def begin(self) -> None:
        """Called by the thread before its work."""
        self._since = time.thread_time()

    def pause(self) -> None:
        """Called by the thread between small parts of its work: wait as long as what it did since the last time asks for."""
        owed = (time.thread_time() - self._since) * (1 / self._share - 1)
        pause = min(owed, self._left)
        if pause > 0:
            self._hurried.wait(pause)
            self._left -= pause
        self._since = time.thread_time()

    def hurry(self) -> None:
        """Called by whoever waits: no more pauses."""
        self._hurried.set()

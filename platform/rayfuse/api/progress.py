"""Progress of work on rows."""

import logging
import sys
import time

from rayfuse.console import LiveText, live_text

_LOG_INTERVAL_SECONDS = 10.0
_LIVE_INTERVAL_SECONDS = 0.2
_log = logging.getLogger(__name__)


class RowProgress:
    """Progress line with rate and time left: live on a terminal and in a notebook, else a line every 10 seconds."""

    def __init__(self) -> None:
        self._live: LiveText | None = live_text(sys.stderr)
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Show that `done` of about `total` rows are done; None if their number is unknown."""
        now = time.monotonic()
        if done == total:
            self.close()
        interval = _LIVE_INTERVAL_SECONDS if self._live else _LOG_INTERVAL_SECONDS
        if done == total or now - self._shown < interval:
            return
        self._shown = now
        rate = done / max(1e-9, now - self._started)
        line = f"{done} rows  {rate:.0f} rows/s"
        if total is not None and total > done:
            line = f"{done}/{total} rows  {rate:.0f} rows/s  {(total - done) / max(1e-9, rate):.0f} s left"
        if self._live:
            self._live.draw(line)
        else:
            _log.info("%s", line)

    def close(self) -> None:
        """Remove the live line."""
        if self._live:
            self._live.clear()

"""The progress of training, for people: a live line on a terminal, plain lines in a file."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rayfuse.train.board import Record

_PLAIN_SECONDS = 15.0


class ProgressLine:
    """Shows where training is."""

    def __init__(self, say: Callable[[str], None], stream: TextIO | None = None) -> None:
        self._say = say
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._width = 0
        self._last = float("-inf")

    def show(self, records: list[Record], progress: dict[str, Any]) -> None:
        """Say what was validated, and where the current epoch is."""
        for record in records:
            validation = {k: v for k, v in record.get("metrics", {}).items() if k.startswith("validation/")}
            if validation:
                self.say(f"step {record['step']:>6}  {_brief(validation)}")
        if progress and self._live:
            self._draw(describe(progress))
        elif progress and time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._say(describe(progress))

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        self._say(text)

    def close(self) -> None:
        self._clear()

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def describe(progress: dict[str, Any]) -> str:
    """`epoch 3/12  step 40/125  loss 1.234  412 rows/s  1:23 left  1.2 GB`."""
    return (
        f"epoch {progress['epoch']:>2}/{progress['epochs']}  step {progress['step']:>4}/{progress['steps']}  "
        f"loss {progress['loss']:.4f}  {progress['rate']:.0f} rows/s  {_clock(progress['left'])} left  "
        f"{progress['memory'] / 1e9:.1f} GB"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _brief(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in without_averages(metrics).items())


def without_averages(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics but for the averages over classes, which would fill the line."""
    return {
        name: value for name, value in metrics.items() if not name.endswith(("_micro", "_macro", "_weighted"))
    }

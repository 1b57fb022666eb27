"""Progress of training: a live line on a terminal and in a notebook, plain log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rayfuse.console import live_text
from rayfuse.formatting import without_averages
from rayfuse.training.metrics_actor import Record

_LOG = logging.getLogger(__name__)

_PLAIN_INTERVAL_SECONDS = 15.0

LogFn = Callable[[str], None]


class ProgressLine:
    """Progress output of a run.

    Lines that stay are logged. On a terminal and in a notebook, a live line shows the progress; elsewhere, it is logged
    every 15 s.
    """

    def __init__(self, log: LogFn = _LOG.info, stream: TextIO | None = None) -> None:
        self._log = log
        self._live = live_text(stream or sys.stderr)
        self._last = float("-inf")

    def update(self, records: list[Record], progress: dict[str, Any]) -> None:
        """Log the validations and messages in new records, and show the progress of the current epoch."""
        for record in records:
            validation = {
                name.removeprefix("validation/"): value
                for name, value in record.get("metrics", {}).items()
                if name.startswith("validation/")
            }
            if validation:
                self.write(f"epoch {record['epoch']:>2}  validation  {_format_metrics(validation)}")
            if "text" in record:
                self.write(record["text"])
        if progress and self._live:
            self._live.draw(format_progress(progress, self._live.width))
        elif progress and time.monotonic() - self._last > _PLAIN_INTERVAL_SECONDS:
            self._last = time.monotonic()
            self._log(format_progress(progress))

    def write(self, text: str) -> None:
        """Log a line, above the live one."""
        self.close()
        self._log(text)

    def close(self) -> None:
        """Remove the live line."""
        if self._live:
            self._live.clear()


def format_progress(progress: Mapping[str, Any], width: int | None = None) -> str:
    """Return one line of aligned columns; the least important ones are omitted to fit `width` characters.

    `progress` is {"epoch", "epochs", "step", "steps", "metrics"}, as `Telemetry.log_step` sends it.
    """
    columns = _columns(progress)
    line = "  ".join(columns.values())
    for name in ("lr", "gradient_norm", "memory", "data_wait", "mfu", "tokens", "left", "samples"):
        if width is None or len(line) <= width:
            return line
        columns.pop(name, None)
        line = "  ".join(columns.values())
    return line[:width]


def _columns(progress: Mapping[str, Any]) -> dict[str, str]:
    found = {name.removeprefix("train/"): value for name, value in progress["metrics"].items()}
    epochs, steps = str(progress["epochs"]), str(progress["steps"])
    columns = {
        "epoch": f"epoch {progress['epoch']:>{len(epochs)}}/{epochs}",
        "step": f"step {progress['step']:>{len(steps)}}/{steps}",
        "loss": f"loss {_format_loss(found['loss']):>7}",
        "gradient_norm": f"grad {_format_short(found.get('gradient_norm')):>5}",
        "lr": f"lr {found['lr']:.1e}",
        "samples": f"{_format_short(found['samples_per_second']):>5} samples/s",
    }
    if "tokens_per_second" in found:
        columns["tokens"] = f"{_format_short(found['tokens_per_second']):>5} tokens/s"
    if "mfu" in found:
        columns["mfu"] = f"mfu {found['mfu']:>5.1%}"
    return columns | {
        "data_wait": f"data wait {found['data_wait']:>4.0%}",
        "memory": f"{found['memory_gigabytes']:>5.1f} GB",
        "left": f"{_format_duration(found['seconds_left']):>7} left",
    }


def _format_loss(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.1e}"


def _format_short(value: float | None) -> str:
    """Format a number with three digits (4e-04, 0.412, 41.2, 412, 41.2k, 4.12M); None is a dash."""
    if value is None:
        return "-"
    if 0 < abs(value) < 0.0095:
        return f"{value:.0e}"
    sizes = (("", 1.0), ("k", 1e3), ("M", 1e6))
    unit, size = next((pair for pair in sizes if abs(value) < 999.5 * pair[1]), sizes[-1])
    scaled = value / size
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits if unit or abs(scaled) >= 0.9995 else 3}f}{unit}"


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _format_metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in without_averages(metrics).items())

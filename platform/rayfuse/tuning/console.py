"""Progress of a sweep: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TextIO

from rayfuse.console import in_notebook
from rayfuse.spec.search_space import format_value
from rayfuse.spec.sweep import Parameter
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.trials import Trial

_MAX_ROWS = 20
_SUMMARY_INTERVAL_SECONDS = 30.0


class ProgressReporter(Protocol):
    """Shows the progress of a sweep."""

    def report(self, board: Leaderboard) -> None:
        """Show the current leaderboard. Called about twice a second."""

    def close(self) -> None:
        """Release the terminal. Called once, at the end."""


def header(board: Leaderboard) -> list[str]:
    """Return the columns of the leaderboard; a parameter has the shortest unique end of its path as its name."""
    return [
        "trial",
        "state",
        board.space.sweep.metric,
        "epochs",
        "seconds",
        *_labels(board.space.sweep.space),
    ]


def row(board: Leaderboard, trial: Trial) -> list[Any]:
    """Return the values of a trial in the columns of `header`."""
    values = [
        _format_value(trial.values[path], parameter) if path in trial.values else "-"
        for path, parameter in board.space.sweep.space.items()
    ]
    found = board.value(trial)
    shown = "-" if found is None else f"{found:.4f}"
    return [trial.number, trial.state, shown, len(trial.history), f"{trial.seconds:.0f}", *values]


def _labels(paths: Iterable[str]) -> list[str]:
    ends = {path: [path.split(".", n)[-1] for n in range(path.count("."), -1, -1)] for path in paths}
    every = [end for found in ends.values() for end in found]
    return [next(end for end in found if every.count(end) == 1) for found in ends.values()]


def _format_value(value: Any, parameter: Parameter) -> str:
    """Format a section by its type alone if no other choice has that type."""
    types = [other.get("type") if isinstance(other, dict) else None for other in parameter.values or []]
    if isinstance(value, dict) and types.count(value.get("type")) == 1:
        return str(value["type"])
    return format_value(value)


class LiveTable:
    """Live table on a terminal, the best trials first."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)

    def report(self, board: Leaderboard) -> None:
        """Draw the table again in place."""
        from rich.table import Table

        trials = board.ranked
        table = Table(caption=_summary(board), caption_justify="left", box=None, header_style="bold")
        for name in header(board):
            table.add_column(name, overflow="fold")
        best = board.best()
        for trial in trials[:_MAX_ROWS]:
            style = "bold" if trial is best else "dim" if trial.state in ("stopped", "failed") else ""
            table.add_row(*map(str, row(board, trial)), style=style)
        if len(trials) > _MAX_ROWS:
            table.add_row("…", f"{len(trials) - _MAX_ROWS} more")
        self._live.start()  # does nothing if it has started
        self._live.update(table, refresh=True)

    def close(self) -> None:
        """Remove the table."""
        self._live.stop()


class PlainLines:
    """Log lines: one per epoch or new state of a trial, and a summary every 30 seconds."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._seen: dict[int, tuple[str, int]] = {}
        self._last_summary = time.monotonic()

    def report(self, board: Leaderboard) -> None:
        """Log what has changed since the last call."""
        for trial in sorted(board.trials, key=lambda trial: trial.number):
            now = (trial.state, len(trial.history))
            if self._seen.get(trial.number) != now:
                self._seen[trial.number] = now
                self._log(_line(board, trial))
        if time.monotonic() - self._last_summary > _SUMMARY_INTERVAL_SECONDS:
            self._last_summary = time.monotonic()
            self._log(_summary(board))

    def close(self) -> None:
        """Do nothing."""


class NotebookTable:
    """Table in the output of a notebook's cell, updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""

    def report(self, board: Leaderboard) -> None:
        """Show the current leaderboard, if it has changed."""
        import pandas as pd
        from IPython.display import display

        frame = pd.DataFrame([row(board, trial) for trial in board.ranked[:_MAX_ROWS]], columns=header(board))
        content = f"{frame.to_html(index=False)}<p>{_summary(board)}</p>"
        if content == self._shown:
            return
        self._shown = content
        bundle = {"text/html": content, "text/plain": _summary(board)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def close(self) -> None:
        """Leave the table as it is."""


def create_reporter(log: Callable[[str], None], stream: TextIO | None = None) -> ProgressReporter:
    """Return a table for a notebook, or for `stream` (default: standard error) if it is a terminal, else plain lines."""
    if in_notebook():
        return NotebookTable()
    stream = stream or sys.stderr
    return LiveTable(stream) if stream.isatty() else PlainLines(log)


def _line(board: Leaderboard, trial: Trial) -> str:
    names = header(board)[5:]
    values = "  ".join(
        f"{name}={value}" for name, value in zip(names, row(board, trial)[5:], strict=True) if value != "-"
    )
    found = board.value(trial)
    reached = f"{board.space.sweep.metric} {found:.4f}" if found is not None else trial.error or "started"
    return f"trial {trial.number:>3}  {trial.state:<8}  epochs {len(trial.history):>2}  {reached}  {values}"


def _summary(board: Leaderboard) -> str:
    running = sum(trial.state == "running" for trial in board.trials)
    best = board.best()
    text = f"{board.num_ended} of {board.num_trials} trials ended, {running} running"
    if best is None:
        return text
    return f"{text}; best so far: trial {best.number}, {board.space.sweep.metric} {board.value(best):.4f}"

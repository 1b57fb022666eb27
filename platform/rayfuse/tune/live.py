"""The table that people watch while a sweep runs: live on a terminal, plain lines in a file."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rayfuse.spec.space import show
from rayfuse.spec.sweep import Parameter
from rayfuse.tune.leaderboard import Leaderboard
from rayfuse.tune.trials import Trial

_MOST_ROWS = 20
_PLAIN_SECONDS = 30.0


def header(board: Leaderboard) -> list[str]:
    """The columns of the leaderboard; a parameter is called by the end of its path, as long as that is unique."""
    return [
        "trial",
        "state",
        board.space.sweep.metric,
        "epochs",
        "seconds",
        *_labels(board.space.sweep.space),
    ]


def row(board: Leaderboard, trial: Trial) -> list[Any]:
    """A trial in these columns."""
    values = [
        _short(trial.values[path], parameter) if path in trial.values else "-"
        for path, parameter in board.space.sweep.space.items()
    ]
    found = board.value(trial)
    shown = "-" if found is None else f"{found:.4f}"
    return [trial.number, trial.state, shown, len(trial.history), f"{trial.seconds:.0f}", *values]


def _labels(paths: Iterable[str]) -> list[str]:
    ends = {path: [path.split(".", n)[-1] for n in range(path.count("."), -1, -1)] for path in paths}
    every = [end for found in ends.values() for end in found]
    return [next(end for end in found if every.count(end) == 1) for found in ends.values()]


def _short(value: Any, parameter: Parameter) -> str:
    """A block by its type alone where that tells it from the others."""
    types = [other.get("type") if isinstance(other, dict) else None for other in parameter.values or []]
    if isinstance(value, dict) and types.count(value.get("type")) == 1:
        return str(value["type"])
    return show(value)


class LiveTable:
    """A table that is redrawn in place, the best trials first."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)

    def show(self, board: Leaderboard) -> None:
        from rich.table import Table

        trials = board.ranked
        table = Table(caption=_summary(board), caption_justify="left", box=None, header_style="bold")
        for name in header(board):
            table.add_column(name, overflow="fold")
        best = board.best()
        for trial in trials[:_MOST_ROWS]:
            style = "bold" if trial is best else "dim" if trial.state in ("stopped", "failed") else ""
            table.add_row(*map(str, row(board, trial)), style=style)
        if len(trials) > _MOST_ROWS:
            table.add_row("…", f"{len(trials) - _MOST_ROWS} more")
        self._live.start()  # does nothing where it has
        self._live.update(table, refresh=True)

    def close(self) -> None:
        self._live.stop()


class PlainLines:
    """A line for every epoch's end of a trial, and now and then how far the sweep is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: dict[int, tuple[str, int]] = {}
        self._last = time.monotonic()

    def show(self, board: Leaderboard) -> None:
        for trial in sorted(board.trials, key=lambda trial: trial.number):
            now = (trial.state, len(trial.history))
            if self._seen.get(trial.number) != now:
                self._seen[trial.number] = now
                self._say(_line(board, trial))
        if time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._say(_summary(board))

    def close(self) -> None:
        pass


def view(say: Callable[[str], None], stream: TextIO | None = None) -> "LiveTable | PlainLines":
    """What suits the place where people read."""
    stream = stream or sys.stderr
    return LiveTable(stream) if stream.isatty() else PlainLines(say)


def _line(board: Leaderboard, trial: Trial) -> str:
    names = header(board)[5:]
    values = "  ".join(
        f"{name}={value}" for name, value in zip(names, row(board, trial)[5:], strict=True) if value != "-"
    )
    found = board.value(trial)
    reached = f"{board.space.sweep.metric} {found:.4f}" if found is not None else trial.error or "begins"
    return f"trial {trial.number:>3}  {trial.state:<8}  epochs {len(trial.history):>2}  {reached}  {values}"


def _summary(board: Leaderboard) -> str:
    running = sum(trial.state == "running" for trial in board.trials)
    best = board.best()
    text = f"{board.ended} of {board.wanted} trials ended, {running} running"
    if best is None:
        return text
    return f"{text}; best so far: trial {best.number}, {board.space.sweep.metric} {board.value(best):.4f}"

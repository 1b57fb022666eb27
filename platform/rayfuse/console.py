"""Log lines and live text for people: on a terminal, in a notebook, or in a file."""

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rayfuse.formatting import escape_controls

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.traceback import Traceback

_log = logging.getLogger("rayfuse")


def show_log(verbose: bool) -> "AbstractContextManager[None]":
    """Show log records of Rayfuse while this lasts, unless `verbose` is false or the application has a log handler."""
    return nullcontext() if not verbose or _log.hasHandlers() else log_to_user(program_output=False)


@contextmanager
def log_to_user(program_output: bool = True) -> Iterator[None]:
    """Show log records of Rayfuse while this lasts: through Rich on a terminal, as plain lines elsewhere.

    Records below WARNING go to standard output if they are the program's output, as for a command (standard error with
    `--json`), or in a notebook; all others to standard error.
    """
    handler, level, propagate = _UserHandler(program_output), _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(level or logging.INFO)
    _log.propagate = False
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)
        _log.propagate = propagate


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Hide warnings of other libraries while this lasts; `-W` of Python and PYTHONWARNINGS show them.

    These are Python warnings, and log records of loggers without a handler.
    """
    fallback = logging.lastResort
    if sys.warnoptions or fallback is None:
        yield
        return
    level = fallback.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.showwarning = _ignore_warning  # libraries add filters, too
        fallback.setLevel(logging.ERROR)
        try:
            yield
        finally:
            fallback.setLevel(level)


def _ignore_warning(*_: object, **__: object) -> None:
    """Show nothing."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class LiveText(Protocol):
    """Text that is replaced in place."""

    @property
    def width(self) -> int | None:
        """Number of characters in a line; None: no limit."""

    def draw(self, text: str) -> None:
        """Replace the text."""

    def clear(self) -> None:
        """Remove the text."""


def live_text(stream: TextIO) -> LiveText | None:
    """Return live text for a notebook, or for `stream` if it is a terminal; None elsewhere."""
    if in_notebook():
        return _NotebookText()
    return _TerminalText(stream) if stream.isatty() else None


class _TerminalText:
    """The last line of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._drawn_width = stream, 0

    @property
    def width(self) -> int | None:
        return shutil.get_terminal_size().columns - 1

    def draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._drawn_width))
        self._stream.flush()
        self._drawn_width = len(text)

    def clear(self) -> None:
        if self._drawn_width:
            self._stream.write("\r" + " " * self._drawn_width + "\r")
            self._stream.flush()
            self._drawn_width = 0


class _NotebookText:
    """An output of a notebook's cell, which is updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def width(self) -> int | None:
        return None

    def draw(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def clear(self) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)


class _UserHandler(logging.Handler):
    """Prints log records; imports Rich only for a terminal."""

    def __init__(self, program_output: bool) -> None:
        super().__init__()
        self._program_output = program_output
        self._terminals: dict[str, logging.Handler] = {}

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        to_stdout = self._program_output or in_notebook()
        stream = sys.stdout if to_stdout and not is_warning else sys.stderr
        if stream.isatty():
            if stream.name not in self._terminals:
                self._terminals[stream.name] = _terminal_handler(stream)
            self._terminals[stream.name].emit(record)
        else:
            prefix = f"{record.levelname.lower()}: " if is_warning else ""
            print(f"{prefix}{escape_controls(self.format(record))}", file=stream, flush=True)


def _terminal_handler(stream: TextIO) -> logging.Handler:
    from rich.console import Console, ConsoleRenderable
    from rich.logging import RichHandler
    from rich.text import Text

    class Handler(RichHandler):
        """Renders only the message, without the columns of RichHandler, which would wrap paths and tables."""

        def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
            shown = escape_controls(message)
            if record.levelno < logging.WARNING:
                return Text(shown)
            level = record.levelname.lower()
            return Text.assemble((f"{level}: ", f"logging.level.{level}"), shown)

        def render(
            self,
            *,
            record: logging.LogRecord,
            traceback: "Traceback | None",
            message_renderable: ConsoleRenderable,
        ) -> ConsoleRenderable:
            return message_renderable

    return Handler(console=Console(file=stream, soft_wrap=True, highlight=False))

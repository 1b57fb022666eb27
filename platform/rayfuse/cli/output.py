"""What every command shares: its options, and the one place that prints.

People read text on standard output. With `--json` standard output carries one JSON object on its last line, and
everything else that anything prints, child processes included, goes to standard error.
"""

import json
import math
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import PurePath
from typing import Any, TextIO, TypeVar

import click

AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])

_answer: TextIO | None = None
"""Where the JSON object goes; None while people are reading."""


def json_option(command: AnyCallable) -> AnyCallable:
    """Option `--json`. The command need not know of it: `main` looks for it before parsing anything."""
    return click.option("--json", is_flag=True, expose_value=False, help="Answer with one JSON object.")(
        command
    )


def set_option(command: AnyCallable) -> AnyCallable:
    """Option `--set`, passed on as `overrides: tuple[str, ...]` for `load_spec`."""
    return click.option(
        "--set",
        "overrides",
        metavar="PATH=VALUE",
        multiple=True,
        help="Override one value of the spec, as in train.epochs=3. May be given several times.",
    )(command)


def say(text: str = "") -> None:
    """A line for people: standard output, or standard error where that one is kept for JSON."""
    print(text, flush=True)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def result(data: Mapping[str, Any], text: str) -> None:
    """The outcome of a command: `text` for people, `data` with `--json`. Call it once, last."""
    if _answer is None:
        say(text)
    else:
        _write_json(data)


def fail(kind: str, message: str, exit_code: int, shown: str | None = None) -> int:
    """Report an error on standard error (as `shown` where given), with `--json` as JSON too; returns `exit_code`."""
    print(f"error: {message}" if shown is None else shown, file=sys.stderr, flush=True)
    if _answer is not None:
        _write_json({"error": {"type": kind, "message": message, "exit_code": exit_code}})
    return exit_code


def is_json() -> bool:
    """Whether a program is reading, so that live progress makes no sense."""
    return _answer is not None


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned with spaces: numbers to the right, everything else to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        for row in [list(header), *cells]
    )
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def json_only(for_good: bool = False) -> Iterator[None]:
    """Keep standard output for the JSON object while this lasts; `for_good`: also while the process ends.

    Ray, for one, says things when Python's own cleaning up ends it.
    """
    global _answer
    with ExitStack() as stack:
        if sys.stdout is sys.__stdout__:
            _answer = stack.enter_context(_descriptor_one_to_stderr(for_good))
        else:  # a test's stand-in, which no child process writes to
            _answer = sys.stdout
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _answer = None


def reader_is_gone() -> bool:
    """After a BrokenPipeError: whether our own output lost its reader. What is still buffered is dropped then."""
    gone = [
        fd for stream in (_answer, sys.stdout, sys.stderr) if (fd := _descriptor(stream)) and _hung_up(fd)
    ]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def _write_json(data: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(data), allow_nan=False), file=_answer or sys.stdout, flush=True)


@contextmanager
def _descriptor_one_to_stderr(for_good: bool) -> Iterator[TextIO]:
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(saved, "w", encoding="utf-8", closefd=False) as answer:
            yield answer
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        if not for_good:
            os.dup2(saved, 1)
        os.close(saved)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream else None
    except OSError:  # a test's stand-in has none
        return None


def _hung_up(descriptor: int) -> bool:
    asked = select.poll()
    asked.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinity become null, numpy scalars and pydantic models their plain values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")

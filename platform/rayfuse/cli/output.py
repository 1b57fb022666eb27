"""Options, results and logging that all commands share; the only module that prints.

Results and log lines go to standard output, warnings to standard error. With `--json` the last line on standard output
is one JSON object, and all other output, also that of child processes, goes to standard error.
"""

import json
import logging
import math
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import PurePath
from typing import Any, TextIO, TypeVar

import click

from rayfuse.formatting import escape_controls
from rayfuse.spec.quality import QUALITIES

AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])

_COLOR = re.compile(r"\x1b\[[0-9;]*m")

_json_stream: TextIO | None = None
"""Stream of the JSON object; None without `--json`."""

_log = logging.getLogger("rayfuse")


def json_option(command: AnyCallable) -> AnyCallable:
    """Add the option `--json`, which `main` handles before parsing, so that the command does not receive it."""
    return click.option("--json", is_flag=True, expose_value=False, help="Print one JSON object.")(command)


def quality_option(command: AnyCallable) -> AnyCallable:
    """Add the option `--quality`, passed as `quality: Quality | None`."""
    return click.option(
        "--quality",
        type=click.Choice(QUALITIES),
        help="Choose options that the job leaves out by its data, for about 2 minutes, 20 minutes or 2 hours of training.",
    )(command)


def target_options(required: bool) -> Callable[[AnyCallable], AnyCallable]:
    """Return a decorator that adds the options of jobs for data as it is: `targets`, `tasks` and `exclude`."""

    def decorate(command: AnyCallable) -> AnyCallable:
        for option in (
            click.option("--exclude", metavar="COLUMN", multiple=True, help="Column that is no input. May be repeated."),
            click.option(
                "--task", "tasks", metavar="COLUMN=TYPE", multiple=True, callback=_parse_tasks,
                help="Kind of task of a target, such as rating=regression, instead of the inferred one.",
            ),
            click.option(
                "--target", "targets", metavar="COLUMN", multiple=True, required=required,
                help="Column of the data to predict. May be repeated.",
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def _parse_tasks(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    tasks = dict(text.rpartition("=")[::2] for text in texts)
    if bad := [text for text in texts if not text.rpartition("=")[0]]:
        raise click.BadParameter(f"{bad[0]!r} is not COLUMN=TYPE, as in rating=regression")
    return tasks


def set_option(example: str) -> Callable[[AnyCallable], AnyCallable]:
    """Return a decorator that adds the option `--set`, passed as `overrides: dict[str, Any]`, values by path."""
    return click.option(
        "--set",
        "overrides",
        metavar="PATH=VALUE",
        multiple=True,
        callback=_parse_overrides,
        help=f"Override a value of the spec, such as {example}. May be repeated.",
    )


def _parse_overrides(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    if not texts:
        return {}
    from rayfuse.spec.load import parse_overrides

    return parse_overrides(texts)


def echo(text: str = "") -> None:
    """Print a text on standard output, or with `--json` on standard error, with control characters escaped."""
    print(escape_controls(text), flush=True)


def echo_log(line: str) -> None:
    """Print a line of a job's log as `echo` does, without its colors; a redrawn progress bar has a line each time."""
    echo(_COLOR.sub("", line).replace("\r", "\n"))


def log(text: str) -> None:
    """Log a line about the progress of a command."""
    _log.info("%s", text)


def warn(text: str) -> None:
    """Log a warning."""
    _log.warning("%s", text)


def print_result(data: Mapping[str, Any], text: str) -> None:
    """Print the result of a command: `text`, or with `--json` the object `data`. Call it once, last."""
    if _json_stream is None:
        echo(text)
    else:
        _write_json(data)


def report_error(error_type: str, message: str, exit_code: int, text: str | None = None) -> int:
    """Print an error (or `text`) on standard error, and with `--json` as JSON; return `exit_code`."""
    shown = escape_controls(f"error: {message}" if text is None else text)
    print(shown, file=sys.stderr, flush=True)
    if _json_stream is not None:
        _write_json({"error": {"type": error_type, "message": message, "exit_code": exit_code}})
    return exit_code


def is_json() -> bool:
    """Return whether the command runs with `--json`."""
    return _json_stream is not None


@contextmanager
def reserve_stdout_for_json(permanent: bool = False) -> Iterator[None]:
    """Reserve standard output for the JSON object while this lasts, or with `permanent` until the process has ended.

    Ray, for example, prints when the interpreter shuts it down.
    """
    global _json_stream
    with ExitStack() as stack:
        if sys.stdout is sys.__stdout__:
            _json_stream = stack.enter_context(_redirect_stdout_to_stderr(permanent))
        else:  # a test's replacement, which no child process writes to
            _json_stream = sys.stdout
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _json_stream = None


def handle_broken_pipe() -> bool:
    """Return whether a standard stream has lost its reader, and if so drop what is still buffered.

    To be called after a BrokenPipeError.
    """
    closed = [
        fd
        for stream in (_json_stream, sys.stdout, sys.stderr)
        if (fd := _descriptor(stream)) and _reader_has_closed(fd)
    ]
    for descriptor in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(closed)


def _write_json(data: Mapping[str, Any]) -> None:
    print(json.dumps(_to_jsonable(data), allow_nan=False), file=_json_stream or sys.stdout, flush=True)


@contextmanager
def _redirect_stdout_to_stderr(permanent: bool) -> Iterator[TextIO]:
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(saved, "w", encoding="utf-8", closefd=False) as json_stream:
            yield json_stream
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        if not permanent:
            os.dup2(saved, 1)
        os.close(saved)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream else None
    except OSError:  # a test's replacement has none
        return None


def _reader_has_closed(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _to_jsonable(value: Any) -> Any:
    """Convert to JSON types: NaN and infinity to null, numpy scalars and pydantic models to their values."""
    if isinstance(value, Mapping):
        return {str(key): _to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_to_jsonable(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        return _to_jsonable(value.item())
    raise TypeError(f"{value!r} of type {type(value).__name__} is not JSON serializable")

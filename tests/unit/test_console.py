"""Log lines and live text on terminals, in files and in notebooks."""

import io
import logging
import subprocess
import sys

import pytest

from rayfuse import console
from rayfuse.cli import output


def test_log_records_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.log_to_user():
        output.log("started")
        logging.getLogger("rayfuse.data").warning("3 rows skipped")
        logging.getLogger("rayfuse.data").debug("hidden")
        logging.getLogger("other").warning("not of Rayfuse")
    captured = capsys.readouterr()
    assert captured.out == "started\n"
    assert captured.err.startswith("warning: 3 rows skipped\n")
    assert "hidden" not in captured.err


def test_log_records_go_to_standard_error_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    with output.reserve_stdout_for_json(), console.log_to_user():
        output.log("started")
        output.print_result({"value": 1}, "done")
    assert capsys.readouterr() == ('{"value": 1}\n', "started\n")


def test_a_terminal_gets_records_through_rich_without_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        name = "<stderr>"

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    path = "/a/path/that/is/longer/than/the/terminal [bold]"
    with console.log_to_user():
        output.warn(path)
    assert "warning" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert f"{path}\n" in terminal.getvalue()


WARNINGS = """
import logging, warnings
from rayfuse import console
def emit():
    warnings.warn("python warning", FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("forced warning")
    logging.getLogger("matplotlib").warning("log warning")
    logging.getLogger("matplotlib").error("log error")
with console.without_library_warnings():
    emit()
print("after", file=__import__("sys").stderr)
emit()
"""


def test_warnings_of_libraries_are_hidden_and_their_errors_are_not() -> None:
    err = _stderr_of(WARNINGS)
    hidden, _, shown = err.partition("after\n")
    assert hidden == "log error\n"
    assert all(text in shown for text in ("python warning", "forced warning", "log warning"))


def test_warnings_of_libraries_are_shown_on_request() -> None:
    hidden, _, _ = _stderr_of(WARNINGS, "-W", "default").partition("after\n")
    assert all(text in hidden for text in ("python warning", "forced warning", "log warning"))


def _stderr_of(script: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def test_logging_of_the_caller_is_restored(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("rayfuse")
    before = (list(logger.handlers), logger.level, logger.propagate)
    with console.log_to_user():
        pass
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    output.warn("to the handlers of the application")
    assert caplog.messages == ["to the handlers of the application"]

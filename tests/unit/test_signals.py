"""Signals that end a command, in processes of their own."""

import signal
import subprocess
import sys

import pytest

from rayfuse.errors import RunInterruptedError
from rayfuse.signals import TerminationSignal, signum_of

SCRIPT = """
import os, signal, sys
from rayfuse.signals import signum_of, termination_as_interrupt
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
try:
    with termination_as_interrupt():
        os.kill(os.getpid(), int(sys.argv[1]))
        print("ignored")
except KeyboardInterrupt as error:
    print(signum_of(error))
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def run(*arguments: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_is_raised_and_handlers_are_restored(signum: signal.Signals) -> None:
    assert run(str(int(signum))) == [str(int(signum)), "True"]


def test_an_ignored_hangup_stays_ignored() -> None:
    assert run(str(int(signal.SIGHUP)), "nohup") == ["ignored", "True"]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(), 143), (TerminationSignal(1), 129)]
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert RunInterruptedError("interrupted", signum_of(error)).exit_code == code

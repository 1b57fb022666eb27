"""The end of a worker that hangs."""

import subprocess
import sys

HANGS = """
import ctypes, sys, time
from rayfuse.training.watchdog import Watchdog
def stuck():
    {how}
with Watchdog(1.5, lambda text, step: print(step, text, flush=True), grace=0.1) as dog:
    for step in range(3):
        time.sleep(0.6)
        dog.heartbeat(step)
    print("alive", flush=True)
    stuck()
print("finished")
"""


def hang(how: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", HANGS.format(how=how)], capture_output=True, text=True, timeout=60, check=False
    )


def test_stacks_of_a_worker_that_hangs_in_python_are_logged() -> None:
    done = hang("time.sleep(60)")
    assert done.returncode == 70
    first, rest = done.stdout.split("\n", 1)
    assert first == "alive"
    assert rest.startswith("2 no progress for ")
    assert "compute.hang_timeout" in rest
    assert "in stuck" in rest


def test_a_worker_that_hangs_with_the_gil_ends_with_its_stacks() -> None:
    done = hang("ctypes.PyDLL(None).sleep(60)")
    assert done.returncode == 1
    assert "in stuck" in done.stderr
    assert "finished" not in done.stdout


def test_the_process_survives_after_the_context_or_without_a_timeout() -> None:
    script = """
import time
from rayfuse.training.watchdog import Watchdog
with Watchdog(0.2, grace=0.1):
    pass
with Watchdog(None):
    time.sleep(0.5)
print("finished")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "finished\n")

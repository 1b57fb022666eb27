"""A worker that hangs says where, and ends."""

import subprocess
import sys
import time

from rayfuse.train.watchdog import Watchdog

HANGS = """
import ctypes, sys, time
from rayfuse.train import watchdog
watchdog._GRACE_SECONDS = 0.1
def stuck():
    {how}
with watchdog.Watchdog(0.4, lambda text: print(text, flush=True)) as dog:
    for _ in range(4):
        time.sleep(0.2)
        dog.beat()
    print("beaten", flush=True)
    stuck()
print("went on")
"""


def hang(how: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", HANGS.format(how=how)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_worker_that_hangs_in_python_says_where() -> None:
    done = hang("time.sleep(60)")
    assert done.returncode == 70
    beaten, rest = done.stdout.split("\n", 1)
    assert beaten == "beaten"
    assert "no progress for 0." in rest
    assert "compute.hang_timeout" in rest
    assert "in stuck" in rest


def test_a_worker_that_hangs_with_the_lock_of_python_says_where() -> None:
    done = hang("ctypes.PyDLL(None).sleep(60)")
    assert done.returncode == 1
    assert "in stuck" in done.stderr
    assert "went on" not in done.stdout


def test_nothing_happens_afterwards_or_without_a_limit() -> None:
    with Watchdog(0.2, print):
        pass
    with Watchdog(None, print):
        time.sleep(0.3)
    time.sleep(0.5)

"""A Ray that Rayfuse starts listens on loopback only, whatever command starts it."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import listening
import pytest
import tiny_jobs
from training_runs import start_training, validated, wait_for

pytestmark = pytest.mark.ray


def observe(process: subprocess.Popen[str], until: Callable[[], bool]) -> set[tuple[str, str]]:
    """Return all addresses that a command and its processes listen on until a condition holds; then interrupt it."""
    found: set[tuple[str, str]] = set()

    def look() -> bool:
        found.update(listening.addresses(listening.tree(process.pid)))
        time.sleep(0.5)
        return until()

    try:
        wait_for(look, process, timeout=400)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    finally:
        process.kill()
    return found


def test_training_listens_on_loopback_only(outside_ray: dict[str, str], tmp_path: Path) -> None:
    """The folder for temporary files has a name that neither Ray's sockets nor PyTorch's URLs can have."""
    tiny_jobs.tiny_job(tmp_path, audio=True)
    temporary = tmp_path / "tmp ü"
    temporary.mkdir()
    many_epochs = ("--set", "train.epochs=200", "--set", "train.early_stopping=null")
    process = start_training(tmp_path, "--set", "compute.workers=2", *many_epochs, TMPDIR=str(temporary))
    found = observe(process, lambda: validated(tmp_path, at_least=3))
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert not listening.beyond_loopback(found)

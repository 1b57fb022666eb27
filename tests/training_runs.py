"""`rayfuse train` as a process, and the contents of its run folders while it runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RAYFUSE = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]


def start_training(
    folder: Path, *options: str, before: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Run `rayfuse train FOLDER/job.yaml` with options, the command prefix `before`, and extra environment variables."""
    command = [*before, *RAYFUSE, "train", str(folder / "job.yaml"), "--json", *options]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 900) -> tuple[int, dict[str, Any], str]:
    """Wait for the end; return exit code, JSON object and standard error."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise
    assert out, err
    return process.returncode, json.loads(out.splitlines()[-1]), err


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 600) -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    _end(process)
    raise AssertionError("did not happen in time")


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and, in time, the Ray that it has started."""
    process.terminate()
    try:
        process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()


def validated(folder: Path, at_least: int = 1) -> bool:
    """Whether the run's journal has the validation of `at_least` epochs."""
    return len(validations(folder)) >= at_least


def validations(folder: Path) -> list[int]:
    """Return the steps at which the journals of all runs have a validation."""
    return _steps_with(folder, "validation/loss")


def steps_done(folder: Path) -> int:
    """Return the last training step in the journals of all runs."""
    return max(_steps_with(folder, "train/loss"), default=0)


def _steps_with(folder: Path, metric: str) -> list[int]:
    journals = (folder / "runs").glob("tiny/*/metrics.jsonl")
    lines = [line for path in journals for line in path.read_text().splitlines(keepends=True)]
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record["step"] for record in records if metric in record.get("metrics", {})]


def runs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("tiny/*/run.json"))]

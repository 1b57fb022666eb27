"""What a trial costs beside its training, and how many of them an hour brings, on the digits with one CPU each."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RAYFUSE = Path(sys.executable).with_name("rayfuse")
TRIALS = 6


def run() -> None:
    """Print the overhead of a trial (asked for until its first step), its share of the trial, and trials per hour."""
    from rayfuse.demo.run import prepare

    prepare(ROOT, print)
    one_epoch = "trial={train.epochs: 1, compute.workers: 1}"
    settings = [f"search={{type: random, trials: {TRIALS}}}", "scheduler={type: none}", one_epoch]
    with tempfile.TemporaryDirectory() as storage:
        done = subprocess.run(
            [
                str(RAYFUSE),
                "tune",
                "tune/digit_fusion.yaml",
                "--json",
                *(f"--set={each}" for each in settings),
            ],
            cwd=ROOT,
            env={**os.environ, "STORAGE": storage},
            check=True,
            stdout=subprocess.PIPE,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    overheads = [trial["overhead"] for trial in found["trials"]]
    shares = [trial["overhead"] / trial["seconds"] for trial in found["trials"]]
    print(
        f"tuning      {TRIALS} trials of one epoch of the digits, one CPU each, {os.cpu_count()} cores, 2 at a time"
    )
    print(
        f"tuning      asked for until its first step: median {statistics.median(overheads):.1f} s "
        f"(from {min(overheads):.1f} to {max(overheads):.1f}), {statistics.median(shares):.2f} of the whole trial"
    )
    print(f"tuning      {found['trials_per_hour']:.1f} trials per hour")

"""Overhead of a trial and trials per hour, on the digits job with one CPU per trial."""

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
    """Print the startup time of a trial (from its suggestion to its first step), its fraction of the trial, and trials per hour."""
    from rayfuse.demo.run import prepare

    prepare(ROOT)
    one_epoch = "trial_overrides={train.epochs: 1, compute.workers: 1}"
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
    leaderboard = json.loads(done.stdout.splitlines()[-1])
    startups = [trial["startup_seconds"] for trial in leaderboard["trials"]]
    fractions = [trial["startup_seconds"] / trial["seconds"] for trial in leaderboard["trials"]]
    print(
        f"tuning      {TRIALS} trials of one epoch of the digits, one CPU each, {os.cpu_count()} cores, 2 at a time"
    )
    print(
        f"tuning      from suggestion to first step: median {statistics.median(startups):.1f} s "
        f"(from {min(startups):.1f} to {max(startups):.1f}), {statistics.median(fractions):.2f} of the trial"
    )
    print(f"tuning      {leaderboard['trials_per_hour']:.1f} trials per hour")

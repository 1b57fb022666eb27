from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import CONCAT, TRANSFORMER, make_space

from rayfuse.training.runs import RunFolder, RunStatus
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.trials import State, Trial, Trials

VALUES: list[tuple[dict[str, Any], State, list[float]]] = [
    ({"fusion": CONCAT, "train.optimizer.lr": 0.01}, "finished", [0.2, 0.5]),
    ({"fusion": TRANSFORMER, "fusion.heads": 4, "train.optimizer.lr": 0.02}, "failed", [0.9]),
    ({"fusion": TRANSFORMER, "fusion.heads": 2, "train.optimizer.lr": 0.03}, "finished", [0.3, 0.7]),
    ({"fusion": CONCAT, "train.optimizer.lr": 0.04}, "stopped", [0.1]),
    ({"fusion": CONCAT, "train.optimizer.lr": 0.05}, "running", []),
]


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    """Return a leaderboard of five of six trials in different states, the best of them trial 3."""
    space = make_space(tmp_path, {"type": "random", "trials": 6})
    trials = Trials(
        RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "", mlflow_run_id="parent", trial_seconds=72.0))
    )
    for number, (values, state, reached) in enumerate(VALUES, start=1):
        trial = Trial(number, values, state, history=[{"answer/accuracy": value} for value in reached])
        trial.error = "the loss is nan" if state == "failed" else None
        trials.run_folder(trial).create()
        trials.save(trial)
    return Leaderboard(space, trials, trials.folder)

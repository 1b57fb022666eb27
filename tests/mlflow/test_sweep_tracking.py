"""Reports of trials are saved in their folders at once, and in MLflow as soon as it is up."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import make_space

from rayfuse.registry.journal import read_journal
from rayfuse.registry.mlflow_connection import connect
from rayfuse.registry.tracker import Tracker
from rayfuse.training.runs import RunFolder, RunStatus
from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.mlflow_runs import send_pending_trials
from rayfuse.tuning.recorder import Recorder
from rayfuse.tuning.search import ResumableSearcher, create_strategy
from rayfuse.tuning.trials import Trial, Trials


def epoch(number: int, accuracy: float) -> dict[str, Any]:
    metrics = {"validation/answer/accuracy": accuracy, "validation/loss": 1.0}
    return {"time": time.time(), "step": number, "epoch": number, "metrics": metrics}


class TuneTrial:
    """Ray Tune's trial, as the recorder uses it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.last_result: dict[str, Any] = {}

    def update_last_result(self, result: dict[str, Any]) -> None:
        self.last_result = result


@pytest.mark.parametrize(
    "last_report",
    [
        {"summary": {"history": [{"answer/accuracy": 0.5}]}},
        {"failure": "out of memory", "out_of_memory": True},
    ],
)
def test_a_trial_that_runs_while_mlflow_is_down(
    server: Any, tmp_path: Path, last_report: dict[str, Any]
) -> None:
    client = connect(server.uri)
    space = make_space(tmp_path, {"type": "random", "trials": 2})
    trials = Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "")))
    strategy, messages = create_strategy(space), list[str]()

    def prepare(trial: Trial) -> dict[str, Any]:
        trials.run_folder(trial).create()
        trials.save(trial)
        return {"number": trial.number}

    def track(trial: Trial) -> Tracker:
        journal = trials.run_folder(trial).path("metrics.jsonl")
        job = space.trial_job(trial.values)
        return Tracker.start(client, job, "trial", journal, trial.run_id, log=messages.append)

    board = Leaderboard(space, trials, trials.folder)
    suggestions = ResumableSearcher(strategy, trials, prepare, "value", "max")
    recorder = Recorder(board, suggestions, strategy, track, messages.append)
    trial: Any = TuneTrial(suggestions.suggest("x"))

    server.kill()
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(
        0, [], trial, {"records": [{"time": time.time(), "step": 0, "metrics": {}, "first_step": 0}]}
    )
    report = {"records": [epoch(1, 0.5)], "value": 0.5, "epoch": 1}
    recorder.on_trial_result(0, [], trial, report)
    assert report == {"value": 0.5, "epoch": 1, "state": "running", "best/answer/accuracy": 0.5}
    recorder.on_trial_result(0, [], trial, {"records": [], **last_report})
    recorder.on_trial_complete(0, [], trial)
    failed = "failure" in last_report
    assert trial.last_result["state"] == ("failed" if failed else "finished")
    assert math.isnan(trial.last_result["best/answer/accuracy"]) == failed

    (kept,) = Trials(trials.folder)
    assert kept.state == ("failed" if "failure" in last_report else "finished")
    assert (kept.error, kept.sent, kept.run_id) == (last_report.get("failure"), False, None)
    assert kept.out_of_memory == failed
    assert kept.startup_seconds is not None
    assert kept.best_value("answer/accuracy", "max") == 0.5
    assert len(list(read_journal(trials.run_folder(kept).path("metrics.jsonl")))) == 2
    assert any("not in MLflow yet" in line for line in messages)

    server.start()
    for _ in range(2):  # the second call has nothing to send
        send_pending_trials(trials, track)
    (kept,) = Trials(trials.folder)
    assert kept.sent
    assert kept.run_id is not None
    run = client.get_run(kept.run_id)
    assert run.info.status == ("FAILED" if "failure" in last_report else "FINISHED")
    assert run.data.metrics["validation/answer/accuracy"] == 0.5
    assert run.data.tags["rayfuse.trial"] == "1"
    assert run.data.tags.get("rayfuse.trial.error") == last_report.get("failure")
    assert len(client.get_metric_history(kept.run_id, "validation/loss")) == 1

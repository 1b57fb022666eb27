"""What Ray Tune tells of trials reaches their folders at once, and MLflow as soon as it answers."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_sweeps import make_space

from rayfuse.registry.journal import read_journal
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.tracking import connect
from rayfuse.train.runs import RunFolder, RunStatus
from rayfuse.tune.recorder import Recorder
from rayfuse.tune.search import Suggestions, strategy
from rayfuse.tune.sweep import send_rest
from rayfuse.tune.trials import Trial, Trials


def epoch(number: int, accuracy: float) -> dict[str, Any]:
    metrics = {"validation/answer/accuracy": accuracy, "validation/loss": 1.0}
    return {"time": time.time(), "step": number, "epoch": number, "metrics": metrics}


@pytest.mark.parametrize(
    "last_word", [{"outcome": {"history": [{"answer/accuracy": 0.5}]}}, {"failure": "no luck"}]
)
def test_a_trial_that_lives_while_mlflow_is_away(
    server: Any, tmp_path: Path, last_word: dict[str, Any]
) -> None:
    client = connect(server.uri)
    space = make_space(tmp_path, {"type": "random", "trials": 2})
    trials = Trials(RunFolder(str(tmp_path / "sweep"), RunStatus("sweep", "")))
    ways, said = strategy(space), list[str]()

    def prepare(trial: Trial) -> dict[str, Any]:
        trials.run(trial).make()
        trials.save(trial)
        return {"number": trial.number}

    def track(trial: Trial) -> Tracker:
        journal = trials.run(trial).path("metrics.jsonl")
        job = space.trial_job(trial.values)
        return Tracker.start(client, job, "trial", journal, trial.run_id, say=said.append)

    suggestions = Suggestions(ways, trials, prepare, "value", "max")
    recorder = Recorder(trials, suggestions, ways, track, said.append)
    tried: Any = SimpleNamespace(config=suggestions.suggest("x"))

    server.kill()
    recorder.on_trial_start(0, [], tried)
    recorder.on_trial_result(
        0, [], tried, {"records": [{"time": time.time(), "step": 0, "metrics": {}, "started": 0}]}
    )
    recorder.on_trial_result(0, [], tried, {"records": [epoch(1, 0.5)], "value": 0.5, "epoch": 1})
    recorder.on_trial_result(0, [], tried, {"records": [], **last_word})
    recorder.on_trial_complete(0, [], tried)

    (kept,) = Trials(trials.folder)
    assert kept.state == ("failed" if "failure" in last_word else "finished")
    assert (kept.error, kept.sent, kept.run_id) == (last_word.get("failure"), False, None)
    assert kept.overhead is not None
    assert kept.best("answer/accuracy", "max") == 0.5
    assert len(list(read_journal(trials.run(kept).path("metrics.jsonl")))) == 2
    assert any("not in MLflow yet" in line for line in said)

    server.start()
    for _ in range(2):  # the second time there is nothing left to send
        send_rest(trials, track)
    (kept,) = Trials(trials.folder)
    assert kept.sent
    assert kept.run_id is not None
    run = client.get_run(kept.run_id)
    assert run.info.status == ("FAILED" if "failure" in last_word else "FINISHED")
    assert run.data.metrics["validation/answer/accuracy"] == 0.5
    assert run.data.tags["rayfuse.trial"] == "1"
    assert run.data.tags.get("rayfuse.trial.error") == last_word.get("failure")
    assert len(client.get_metric_history(kept.run_id, "validation/loss")) == 1

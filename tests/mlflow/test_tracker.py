"""A run survives an outage of its MLflow server: no metric is lost or doubled, and a journal can be sent again."""

from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import tiny_job

from rayfuse.errors import UnavailableError
from rayfuse.registry.journal import read_journal
from rayfuse.registry.mlflow_connection import connect
from rayfuse.registry.tracker import Tracker


def records(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"time": 1.7e9 + i, "step": i, "metrics": {"train/loss": 1 / (i + 1), "system/cpu": 50.0}}
        for i in range(first, first + count)
    ]


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of every stored value, by step."""
    found = tracker.client.get_metric_history(tracker.run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def expected(count: int) -> list[tuple[int, float]]:
    return [(i, 1 / (i + 1)) for i in range(count)]


def test_two_runs_survive_an_outage(server: Any, tmp_path: Path) -> None:
    """One run continues while the server is down and ends when it is back; the other ends while it is down."""
    job, messages, ending_messages = tiny_job(tmp_path), list[str](), list[str]()
    (tmp_path / "plot.png").write_bytes(b"png")
    continuing = Tracker.start(server.uri, job, "continues", tmp_path / "a.jsonl", log=messages.append)
    ending = Tracker.start(server.uri, job, "ends", tmp_path / "b.jsonl", log=ending_messages.append)
    continuing.log_datasets({"train": "0" * 32}, {"train": 48})
    for tracker in (continuing, ending):
        tracker.log(records(0, 300))
        assert tracker.flush(timeout=300)

    continuing.log(records(300, 2000))  # the server dies while these are being sent
    server.kill()
    for i in range(2300, 2400):
        continuing.log(records(i, 1))
    continuing.log_artifact(tmp_path / "plot.png", "plots")
    ending.log(records(300, 700))
    with pytest.raises(UnavailableError, match=r"training is complete.*b\.jsonl.*the same command"):
        ending.finish(timeout=2)
    assert len(list(read_journal(tmp_path / "b.jsonl"))) == 1000

    server.start()
    continuing.log(records(2400, 10))
    continuing.finish()
    again = Tracker.start(server.uri, job, "ends", tmp_path / "b.jsonl", run_id=ending.run_id)
    assert again.run_id == ending.run_id
    assert again.resend() == 1000
    again.resend()  # sent twice: MLflow stores each once
    again.finish()

    assert history(continuing, "train/loss") == expected(2410)
    assert len(history(continuing, "system/cpu")) == 2410
    assert history(again, "train/loss") == expected(1000)
    run = continuing.client.get_run(continuing.run_id)
    assert (run.info.status, again.client.get_run(again.run_id).info.status) == ("FINISHED", "FINISHED")
    assert run.data.params["data.train.digest"] == "0" * 32
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["train"]
    plots = continuing.client.list_artifacts(continuing.run_id, "plots")
    assert [file.path for file in plots] == ["plots/plot.png"]
    assert [line.startswith("MLflow is back") for line in messages] == [False, True], messages
    assert ["is not reachable" in line for line in ending_messages] == [True], ending_messages


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(
        UnavailableError, match=r"http://127\.0\.0\.1:9 is not reachable.*MLFLOW_TRACKING_URI"
    ):
        connect("http://127.0.0.1:9")


def test_another_server_is_an_error(server: Any) -> None:
    with pytest.raises(UnavailableError, match="not an MLflow server"):
        connect(f"{server.uri}/elsewhere")

"""A run survives its MLflow server: nothing lost, nothing doubled, and a journal that can be sent again."""

import time
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import tiny_job

from rayfuse.errors import NotReachable
from rayfuse.registry.journal import read_journal
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.tracking import connect


def records(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"time": 1.7e9 + i, "step": i, "metrics": {"train/loss": 1 / (i + 1), "system/cpu": 50.0}}
        for i in range(first, first + count)
    ]


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    """(step, value) of every stored value, in the order of the steps."""
    found = tracker.client.get_metric_history(tracker.run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def expected(count: int) -> list[tuple[int, float]]:
    return [(i, 1 / (i + 1)) for i in range(count)]


def test_two_runs_live_through_an_outage(server: Any, tmp_path: Path) -> None:
    """One trains on while the server is away and ends when it is back; the other one ends while it is away."""
    job, said, said_too = tiny_job(tmp_path), list[str](), list[str]()
    (tmp_path / "picture.png").write_bytes(b"png")
    going_on = Tracker.start(server.uri, job, "goes on", tmp_path / "a.jsonl", say=said.append)
    ending = Tracker.start(server.uri, job, "ends", tmp_path / "b.jsonl", say=said_too.append)
    going_on.set_data({"train": "0" * 32}, {"train": 48})
    for tracker in (going_on, ending):
        tracker.log(records(0, 300))
        assert tracker.flush()

    going_on.log(records(300, 2000))  # the server dies while these are on their way
    server.kill()
    began = time.monotonic()
    for i in range(2300, 2400):
        going_on.log(records(i, 1))
    going_on.artifact(tmp_path / "picture.png", "pictures")
    assert time.monotonic() - began < 2, "logging must not wait for MLflow"
    ending.log(records(300, 700))
    with pytest.raises(NotReachable, match=r"training is complete.*b\.jsonl.*the same command"):
        ending.finish(timeout=2)
    assert time.monotonic() - began < 20
    assert len(list(read_journal(tmp_path / "b.jsonl"))) == 1000

    server.start()
    going_on.log(records(2400, 10))
    going_on.finish()
    again = Tracker.start(server.uri, job, "ends", tmp_path / "b.jsonl", run_id=ending.run_id)
    assert again.run_id == ending.run_id
    assert again.resend() == 1000
    again.resend()  # the same once more: MLflow keeps one of each
    again.finish()

    assert history(going_on, "train/loss") == expected(2410)
    assert len(history(going_on, "system/cpu")) == 2410
    assert history(again, "train/loss") == expected(1000)
    run = going_on.client.get_run(going_on.run_id)
    assert (run.info.status, again.client.get_run(again.run_id).info.status) == ("FINISHED", "FINISHED")
    assert run.data.params["data.train.digest"] == "0" * 32
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["train"]
    pictures = going_on.client.list_artifacts(going_on.run_id, "pictures")
    assert [file.path for file in pictures] == ["pictures/picture.png"]
    assert ["answers again" in line for line in said] == [False, True], said
    assert ["does not answer" in line for line in said_too] == [True], said_too


def test_a_server_that_is_not_there_is_found_out_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(NotReachable, match=r"http://127\.0\.0\.1:9 does not answer.*MLFLOW_TRACKING_URI"):
        connect("http://127.0.0.1:9")
    assert time.monotonic() - began < 5


def test_something_else_than_mlflow_is_said_to_be_so(server: Any) -> None:
    with pytest.raises(NotReachable, match="not as MLflow does"):
        connect(f"{server.uri}/elsewhere")

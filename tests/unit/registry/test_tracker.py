import json
import math
from pathlib import Path
from typing import Any

from tiny_jobs import tiny_job

from rayfuse.registry.tracker import Tracker, flatten


def start(client: Any, folder: Path, said: list[str] | None = None, **options: Any) -> Tracker:
    say = (said if said is not None else []).append
    journal = options.pop("journal", folder / "m.jsonl")
    return Tracker.start(client, tiny_job(folder, name=folder.name), "run", journal, say=say, **options)


def test_a_run_says_what_was_trained_and_with_which_code(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path, spec_file=str(tmp_path / "job.yaml"))
    tracker.set_data({"train": "a" * 32, "test": "b" * 32}, {"train": 48, "test": 24})
    tracker.finish()
    run = client.get_run(tracker.run_id)
    assert run.data.params["inputs.image.encoder.type"] == "conv"
    assert run.data.params["data.test.digest"] == "b" * 32
    assert run.data.params["data.train.rows"] == "48"
    assert run.data.tags["rayfuse.kind"] == "job"
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest in ("a" * 32, "b" * 32)
    spec = json.loads(Path(client.download_artifacts(tracker.run_id, "spec.json")).read_text())
    assert spec["train"]["batch_size"] == 16
    assert run.info.artifact_uri.startswith("file:")
    assert "mlartifacts" in run.info.artifact_uri


def test_numbers_that_are_none_are_kept_too(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path)
    values = {"train/loss": math.nan, "train/rate": math.inf, "train/note": "text", "train/absent": None}
    tracker.log([{"time": 1.0, "step": 3, "metrics": values}])
    tracker.finish()
    assert math.isnan(client.get_metric_history(tracker.run_id, "train/loss")[0].value)
    assert client.get_run(tracker.run_id).data.metrics.keys() == {"train/loss", "train/rate"}


def test_a_journal_sent_again_doubles_nothing(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path)
    tracker.log([{"time": float(i), "step": i, "metrics": {"train/loss": i / 7}} for i in range(50)])
    tracker.finish("KILLED")
    again = start(client, tmp_path, run_id=tracker.run_id)
    assert again.run_id == tracker.run_id
    assert client.get_run(again.run_id).info.status == "RUNNING"
    assert again.resend() == 50
    again.log([{"time": 50.0, "step": 50, "metrics": {"train/loss": 0.1}}])
    again.finish()
    assert sorted(m.step for m in client.get_metric_history(again.run_id, "train/loss")) == list(range(51))


def test_a_run_that_is_gone_gets_a_new_one(client: Any, tmp_path: Path) -> None:
    said: list[str] = []
    tracker = start(client, tmp_path, said, run_id="0" * 32)
    tracker.finish()
    assert tracker.run_id != "0" * 32
    assert "no longer has run" in said[0]


def test_nothing_that_breaks_stops_the_training(client: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    tracker = start(client, tmp_path, said, journal=tmp_path / "file" / "m.jsonl")
    tracker.log([{"time": 1.0, "step": 1, "metrics": {"train/loss": 1.0}}])
    tracker.log([{"time": 2.0, "step": 2, "metrics": {"bad name!?\n": 1.0, "train/loss": 0.5}}])
    tracker.artifact(tmp_path / "never made.png")
    tracker.finish()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 2
    assert [line.partition(":")[0] for line in said] == [
        f"{tmp_path}/file/m.jsonl cannot be written",
        "MLflow refuses `bad name!?\n`",
        f"{tmp_path}/never made.png",
    ]


def test_flatten_keeps_lists_whole_and_leaves_null_out() -> None:
    assert flatten({"a": {"b": [1, 2], "c": None}, "d": True}) == {"a.b": "[1, 2]", "d": "True"}

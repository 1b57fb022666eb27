import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import tiny_job

from rayfuse.pipeline import input_subset_metrics
from rayfuse.registry.tracker import Tracker, flatten_params


def start(client: Any, folder: Path, messages: list[str] | None = None, **options: Any) -> Tracker:
    log = (messages if messages is not None else []).append
    journal = options.pop("journal", folder / "m.jsonl")
    return Tracker.start(client, tiny_job(folder, name=folder.name), "run", journal, log=log, **options)


def test_a_run_has_spec_data_and_code(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path, spec_file=str(tmp_path / "job.yaml"))
    tracker.log_datasets({"train": "a" * 32, "test": "b" * 32}, {"train": 48, "test": 24})
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


def test_nan_and_infinity_are_metrics(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path)
    values = {"train/loss": math.nan, "train/rate": math.inf, "train/note": "text", "train/absent": None}
    tracker.log([{"time": 1.0, "step": 3, "metrics": values}])
    tracker.finish()
    assert math.isnan(client.get_metric_history(tracker.run_id, "train/loss")[0].value)
    assert client.get_run(tracker.run_id).data.metrics.keys() == {"train/loss", "train/rate"}


def test_a_journal_that_is_sent_twice_is_stored_once(client: Any, tmp_path: Path) -> None:
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


def test_a_deleted_run_is_replaced(client: Any, tmp_path: Path) -> None:
    messages: list[str] = []
    tracker = start(client, tmp_path, messages, run_id="0" * 32)
    tracker.finish()
    assert tracker.run_id != "0" * 32
    assert "has no run" in messages[0]


def test_failures_of_tracking_are_logged(client: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    messages: list[str] = []
    tracker = start(client, tmp_path, messages, journal=tmp_path / "file" / "m.jsonl")
    tracker.log([{"time": 1.0, "step": 1, "metrics": {"train/loss": 1.0}}])
    tracker.log([{"time": 2.0, "step": 2, "metrics": {"bad name!?\n": 1.0, "train/loss": 0.5}}])
    tracker.log_artifact(tmp_path / "never made.png")
    tracker.finish()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 2
    assert [line.partition(":")[0] for line in messages] == [
        f"{tmp_path}/file/m.jsonl cannot be written",
        "MLflow rejected `bad name!?\n`, which is dropped",
        f"{tmp_path}/never made.png",
    ]


def test_flatten_params_has_lists_as_text_and_no_null() -> None:
    assert flatten_params({"a": {"b": [1, 2], "c": None}, "d": True}) == {"a.b": "[1, 2]", "d": "True"}


def test_mlflow_accepts_the_metric_names_of_input_subsets(client: Any) -> None:
    by_inputs = {
        "image+text": {"answer/accuracy": 0.75, "answer/f1_macro": 0.5},
        "text": {"answer/accuracy": 0.5},
    }
    metrics = input_subset_metrics({"split": "test", "by_inputs": by_inputs})
    assert metrics["test_by_inputs/image.text/answer/accuracy"] == 0.75
    assert not any("macro" in name for name in metrics)
    run_id = client.create_run(client.create_experiment("by inputs")).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    assert client.get_run(run_id).data.metrics == pytest.approx(metrics)

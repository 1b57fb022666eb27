import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import tiny_job

from rayfuse.errors import SpecError
from rayfuse.registry.tracker import Tracker, check_experiment


def start(client: Any, folder: Path, messages: list[str] | None = None, **options: Any) -> Tracker:
    log = (messages if messages is not None else []).append
    journal = options.pop("journal", folder / "m.jsonl")
    job = tiny_job(folder, name=folder.name, **options.pop("overrides", {}))
    return Tracker.start(client, job, "run", journal, log=log, **options)


def test_a_run_has_spec_data_and_code(client: Any, tmp_path: Path) -> None:
    tracker = start(client, tmp_path, spec_file=str(tmp_path / "job.yaml"))
    tracker.log_datasets({"train": "a" * 32, "test": "b" * 32}, {"train": 48, "test": 24})
    tracker.finish()
    run = client.get_run(tracker.run_id)
    assert run.data.params["inputs.image.encoder.type"] == "conv"
    assert run.data.params["data.test.digest"] == "b" * 32
    assert run.data.params["data.train.rows"] == "48"
    assert run.data.tags["rayfuse.kind"] == "job"
    assert "## Inputs" in run.data.tags["mlflow.note.content"]
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest in ("a" * 32, "b" * 32)
    spec = json.loads(Path(client.download_artifacts(tracker.run_id, "spec.json")).read_text())
    assert spec["train"]["batch_size"] == 16
    assert run.info.artifact_uri.startswith("file:")
    assert "mlartifacts" in run.info.artifact_uri


def test_a_deleted_experiment_is_found_before_training(client: Any, tmp_path: Path) -> None:
    check_experiment(client, "never made")
    experiment = client.create_experiment("deleted")
    check_experiment(client, "deleted")
    client.delete_experiment(experiment)
    with pytest.raises(SpecError, match=f"`deleted` is deleted.* --experiment-id {experiment}"):
        check_experiment(client, "deleted")


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
    tracker.log([{"time": 2.0, "step": 2, "metrics": {"any name!?\n": 1.0, "train/loss": 0.5}}])
    tracker.log_artifact(tmp_path / "never made.png")
    tracker.finish()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 2
    assert client.get_run(tracker.run_id).data.metrics["any name___"] == 1.0
    assert [line.partition(":")[0] for line in messages] == [
        f"{tmp_path}/file/m.jsonl cannot be written",
        f"{tmp_path}/never made.png",
    ]


def test_any_column_or_class_is_the_name_of_a_parameter(client: Any, tmp_path: Path) -> None:
    names = [
        "Age (years)",
        "Income, €",
        "C++",
        "C#",
        "50%",
        "a/../b",
        "/root",
        "x//y",
        "..",
        ".",
        r"layer\.5\..*",
        "h" * 300,
    ]
    weights = {name: float(number) for number, name in enumerate(names, start=1)}
    task = {"type": "classification", "column": "label", "class_weights": weights}
    tracker = start(client, tmp_path, overrides={"tasks.answer": task})
    tracker.finish()
    params = client.get_run(tracker.run_id).data.params
    logged = [value for name, value in params.items() if name.startswith("tasks.answer.class_weights.")]
    assert sorted(map(float, logged)) == sorted(weights.values())
    assert params["tasks.answer.class_weights.Age _years_"] == "1.0"

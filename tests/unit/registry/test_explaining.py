"""What a model's inputs contribute over rows, drawn and logged."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_jobs import make_model_folder, make_rows, tiny_job

from rayfuse.data.reading import read_job_rows
from rayfuse.errors import SpecError
from rayfuse.model.predictor import Predictor
from rayfuse.registry import evaluate as evaluating
from rayfuse.registry.evaluate import evaluate_folder
from rayfuse.registry.explaining import explain_rows, log_pictures, mean_attention, save_explanations
from rayfuse.registry.fetching import LocalModel
from rayfuse.registry.pictures import save_pictures


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures, clips and texts with two tasks, and its rows in data/."""
    folder = tmp_path_factory.mktemp("heard")
    overrides = {"tasks.brightness": {"type": "regression", "weight": 0.1}}
    make_model_folder(folder, 5, job=tiny_job(folder / "data", audio=True, **overrides))
    return folder


@pytest.fixture(scope="module")
def measured(heard: Path) -> dict[str, Any]:
    return evaluate_folder(
        heard / "model", str(heard / "data" / "train.jsonl"), 7, explain=2, pictures=heard / "pictures"
    )


def test_means_are_those_of_the_single_answers(heard: Path, measured: dict[str, Any]) -> None:
    """Row by row, as an endpoint explains them: the same contributions, though in other batches."""
    predictor = Predictor(heard / "model")
    rows, _ = read_job_rows(str(heard / "data" / "train.jsonl"), predictor.job)
    samples = [predictor.maker.from_row(row) for row in rows]
    answers = predictor.answer(samples, explain=True)
    assert list(measured["explain"]) == ["answer", "brightness"]
    for task, found in measured["explain"].items():
        parts = [answer["explain"]["tasks"][task] for answer in answers]
        assert found["rows"] == len(rows) == 48
        assert found["value"] == pytest.approx(np.mean([part["value"] for part in parts]), rel=1e-3)
        assert found["base"] == pytest.approx(np.mean([part["base"] for part in parts]), rel=1e-3)
        for name, mean in found["contributions"].items():
            given = [part["contributions"][name] for part in parts if name in part["contributions"]]
            assert found["rows_with"][name] == len(given)
            assert mean == pytest.approx(np.abs(given).mean(), rel=1e-2)
    said = [answer["outputs"]["answer"]["label"] for answer in answers]
    assert set(measured["explain"]["answer"]["by_answer"]) == set(said)
    assert "by_answer" not in measured["explain"]["brightness"]


def test_explaining_changes_no_number(heard: Path, measured: dict[str, Any]) -> None:
    plain = evaluate_folder(heard / "model", str(heard / "data" / "train.jsonl"), 7)
    assert not {"explain", "attention", "pictures"} & set(plain)
    assert plain["metrics"] == pytest.approx(measured["metrics"])
    assert list(plain["by_inputs"]) == list(measured["by_inputs"]), "the empty subset is no subset to report"


def test_each_row_gets_a_picture(measured: dict[str, Any]) -> None:
    assert [path.name for path in measured["pictures"]] == ["row_01.png", "row_02.png"]
    for path in measured["pictures"]:
        with Image.open(path) as picture:
            assert picture.width > 400


def test_a_row_without_a_picture_or_with_a_broken_one_is_no_obstacle(heard: Path, tmp_path: Path) -> None:
    predictor = Predictor(heard / "model")
    shutil.copytree(heard / "data", tmp_path / "data")
    lines = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    (tmp_path / "data" / "broken.png").write_bytes(b"nothing")
    chosen = [{**lines[0], "image": "broken.png"}, {"text": "?", "label": "red", "brightness": 1.0}]
    (tmp_path / "data" / "few.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    rows, _ = read_job_rows(str(tmp_path / "data" / "few.jsonl"), predictor.job)
    found = explain_rows(predictor, rows, 10)
    assert [one.row.values["label"] for one in found] == ["red"]
    assert mean_attention(found) == {}
    assert len(save_explanations(tmp_path / "pictures", found, predictor)) == 1


def test_too_many_inputs_are_refused(heard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfuse.model.explain.MOST_INPUTS", 2)
    with pytest.raises(SpecError, match="at most 2 inputs are explained"):
        evaluate_folder(heard / "model", str(heard / "data" / "test.jsonl"), explain=0)
    assert evaluating.importance({}, ["a", "b", "c"], {}) == {}


def test_a_runs_report_shows_the_contributions(measured: dict[str, Any], tmp_path: Path) -> None:
    evaluation = {**measured, "split": "test"}
    names = [path.name for path in save_pictures(tmp_path, evaluation, [], "answer/accuracy")]
    assert {"contributions_answer.png", "contributions_brightness.png", "by_inputs.png"} <= set(names)
    json.dumps({key: value for key, value in evaluation.items() if key != "pictures"}, allow_nan=False)


def test_every_subset_is_a_metric_that_mlflow_takes(client: Any, measured: dict[str, Any]) -> None:
    from rayfuse.pipeline import by_inputs_metrics

    metrics = by_inputs_metrics({**measured, "split": "test"})
    assert metrics["test_by_inputs/image.text/answer/accuracy"] == pytest.approx(
        measured["by_inputs"]["image+text"]["answer/accuracy"]
    )
    assert not any("macro" in name for name in metrics)
    run_id = client.create_run(client.create_experiment("by inputs")).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    assert client.get_run(run_id).data.metrics == pytest.approx(metrics)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "row_01.png").write_bytes(b"a picture")
    return tmp_path / "drawn"


def logged(client: Any, run_id: str) -> list[str]:
    return [found.path for found in client.list_artifacts(run_id, "explain")]


def test_pictures_go_to_the_run_that_made_a_registered_model(client: Any, drawn: Path) -> None:
    run_id = client.create_run(
        client.create_experiment("explained", str(drawn.parent / "artifacts"))
    ).info.run_id
    client.create_registered_model("explained")
    version = int(client.create_model_version("explained", "/nowhere", run_id=run_id).version)
    local = LocalModel(Path("/nowhere"), "explained", version)
    assert log_pictures(drawn, local, client.tracking_uri, pytest.fail) == run_id
    assert logged(client, run_id) == ["explain/row_01.png"]


def test_pictures_go_to_the_run_whose_folder_a_model_lies_in(
    client: Any, drawn: Path, tmp_path: Path
) -> None:
    run_id = client.create_run(client.create_experiment("beside", str(tmp_path / "artifacts"))).info.run_id
    (tmp_path / "run.json").write_text(json.dumps({"name": "x", "tracking_run": run_id}))
    (tmp_path / "job.json").write_text(
        json.dumps({"output": {"storage": str(tmp_path), "tracking": client.tracking_uri}})
    )
    assert log_pictures(drawn, LocalModel(tmp_path / "model"), None, pytest.fail) == run_id
    assert logged(client, run_id) == ["explain/row_01.png"]


def test_an_mlflow_that_is_away_is_a_warning(drawn: Path, tmp_path: Path) -> None:
    warned: list[str] = []
    (tmp_path / "run.json").write_text(json.dumps({"tracking_run": "abc"}))
    (tmp_path / "job.json").write_text(json.dumps({"output": {"storage": str(tmp_path / "gone")}}))
    local = LocalModel(tmp_path / "model")
    assert log_pictures(drawn, local, str(tmp_path / "gone" / "mlflow.db"), warned.append) is None
    assert "the pictures are not in MLflow" in warned[0]
    assert log_pictures(drawn, LocalModel(drawn / "model"), None, warned.append) is None
    assert len(warned) == 1


def test_new_rows_are_explained_as_well(heard: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 3, "unseen", audio=True)
    found = evaluate_folder(heard / "model", str(rows), explain=0, pictures=tmp_path / "pictures")
    assert set(found["explain"]["answer"]["contributions"]) <= {"image", "text", "audio"}
    assert "pictures" not in found

"""Importance of inputs over rows, and plots of explained rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_jobs import make_model_folder, make_rows, tiny_job

from rayfuse.data.ingest import read_job_rows
from rayfuse.errors import SpecError
from rayfuse.evaluation import evaluate as evaluate_module
from rayfuse.evaluation.attribution_plots import explain_rows, mean_attention, save_attribution_plots
from rayfuse.evaluation.evaluate import evaluate_folder
from rayfuse.evaluation.plots import save_plots
from rayfuse.model.predictor import Predictor


@pytest.fixture(scope="module")
def audio_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of images, audio and texts for two tasks, and its rows in data/."""
    folder = tmp_path_factory.mktemp("audio_model")
    overrides = {"tasks.brightness": {"type": "regression", "weight": 0.1}}
    make_model_folder(folder, 5, job=tiny_job(folder / "data", audio=True, **overrides))
    return folder


@pytest.fixture(scope="module")
def evaluation(audio_model: Path) -> dict[str, Any]:
    return evaluate_folder(
        audio_model / "model",
        str(audio_model / "data" / "train.jsonl"),
        7,
        explain=2,
        plot_dir=audio_model / "plots",
    )


def test_importance_is_the_mean_over_single_explanations(
    audio_model: Path, evaluation: dict[str, Any]
) -> None:
    """An endpoint explains row by row: the contributions are the same in other batches."""
    predictor = Predictor(audio_model / "model")
    rows, _ = read_job_rows(str(audio_model / "data" / "train.jsonl"), predictor.job)
    samples = [predictor.preprocessor.from_row(row) for row in rows]
    predictions = predictor.predict_samples(samples, explain=True)
    assert list(evaluation["explain"]) == ["answer", "brightness"]
    for task, found in evaluation["explain"].items():
        parts = [prediction["explain"]["tasks"][task] for prediction in predictions]
        assert found["rows"] == len(rows) == 48
        assert found["value"] == pytest.approx(np.mean([part["value"] for part in parts]), rel=1e-3)
        assert found["base_value"] == pytest.approx(np.mean([part["base_value"] for part in parts]), rel=1e-3)
        for name, mean in found["contributions"].items():
            given = [part["contributions"][name] for part in parts if name in part["contributions"]]
            assert found["rows_with"][name] == len(given)
            assert mean == pytest.approx(np.abs(given).mean(), rel=1e-2)
    labels = [prediction["outputs"]["answer"]["label"] for prediction in predictions]
    assert set(evaluation["explain"]["answer"]["by_label"]) == set(labels)
    assert "by_label" not in evaluation["explain"]["brightness"]


def test_explaining_does_not_change_metrics(audio_model: Path, evaluation: dict[str, Any]) -> None:
    plain = evaluate_folder(audio_model / "model", str(audio_model / "data" / "train.jsonl"), 7)
    assert not {"explain", "attention", "plots"} & set(plain)
    assert plain["metrics"] == pytest.approx(evaluation["metrics"])
    assert list(plain["by_inputs"]) == list(evaluation["by_inputs"]), "the empty subset is not reported"


def test_each_explained_row_gets_a_plot(evaluation: dict[str, Any]) -> None:
    assert [path.name for path in evaluation["plots"]] == ["row_01.png", "row_02.png"]
    for path in evaluation["plots"]:
        with Image.open(path) as image:
            assert image.width > 400


def test_rows_with_missing_or_broken_images_are_skipped_or_drawn(audio_model: Path, tmp_path: Path) -> None:
    predictor = Predictor(audio_model / "model")
    shutil.copytree(audio_model / "data", tmp_path / "data")
    lines = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    (tmp_path / "data" / "broken.png").write_bytes(b"nothing")
    chosen = [{**lines[0], "image": "broken.png"}, {"text": "?", "label": "red", "brightness": 1.0}]
    (tmp_path / "data" / "few.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    rows, _ = read_job_rows(str(tmp_path / "data" / "few.jsonl"), predictor.job)
    found = explain_rows(predictor, rows, 10)
    assert [one.row.values["label"] for one in found] == ["red"]
    assert mean_attention(found) == {}
    assert len(save_attribution_plots(tmp_path / "plots", found, predictor)) == 1


def test_too_many_inputs_are_rejected(audio_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfuse.model.explain.MAX_INPUTS", 2)
    with pytest.raises(SpecError, match="at most 2 inputs can be explained"):
        evaluate_folder(audio_model / "model", str(audio_model / "data" / "test.jsonl"), explain=0)
    assert evaluate_module.input_importance({}, ["a", "b", "c"], {}) == {}


def test_the_plots_of_a_run_include_contributions(evaluation: dict[str, Any], tmp_path: Path) -> None:
    report = {**evaluation, "split": "test"}
    names = [path.name for path in save_plots(tmp_path, report, [], "answer/accuracy")]
    assert {"contributions_answer.png", "contributions_brightness.png", "by_inputs.png"} <= set(names)
    json.dumps({key: value for key, value in report.items() if key != "plots"}, allow_nan=False)


def test_unseen_rows_are_explained(audio_model: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 3, "unseen", audio=True)
    found = evaluate_folder(audio_model / "model", str(rows), explain=0, plot_dir=tmp_path / "plots")
    assert set(found["explain"]["answer"]["contributions"]) <= {"image", "text", "audio"}
    assert "plots" not in found

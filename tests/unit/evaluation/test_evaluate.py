"""Metrics of an evaluation against ones computed from single predictions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_rows

from rayfuse.errors import DataError
from rayfuse.evaluation.evaluate import evaluate_folder, evaluation_rows
from rayfuse.model.predictor import Predictor


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows"), 30, "unseen", seed=7)


def accuracy(predictor: Predictor, path: Path, keep: set[str]) -> float:
    """Return the accuracy with only the inputs `keep`, predicted one row at a time."""
    correct = 0
    lines = path.read_text().splitlines()
    for line in lines:
        row = json.loads(line)
        values: dict[str, Any] = {"text": row["text"]}
        if "image" in row and "image" in keep:
            values["image"] = (path.parent / row["image"]).read_bytes()
        answer = predictor.predict([values])[0]["outputs"]["answer"]
        correct += answer["label"] == row["label"]
    return correct / len(lines)


def test_metrics_equal_those_of_single_predictions(tiny: Path, rows: Path) -> None:
    found = evaluate_folder(tiny / "model", str(rows), batch_size=7)
    predictor = Predictor(tiny / "model")
    assert found["metrics"]["answer/accuracy"] == pytest.approx(accuracy(predictor, rows, {"image", "text"}))
    assert found["by_inputs"]["text"]["answer/accuracy"] == pytest.approx(accuracy(predictor, rows, {"text"}))
    assert list(found["by_inputs"]) == ["image+text", "image", "text"]
    assert found["by_inputs"]["image+text"] == found["metrics"]
    assert (found["rows"], found["invalid"]) == (30, 0)
    confusion = found["details"]["answer"]["confusion"]
    assert sum(count for _, _, count in confusion) == 30


def test_batch_size_does_not_change_metrics(tiny: Path, rows: Path) -> None:
    one = evaluate_folder(tiny / "model", str(rows), batch_size=1)["metrics"]
    all_at_once = evaluate_folder(tiny / "model", str(rows), batch_size=64)["metrics"]
    assert one == pytest.approx(all_at_once, rel=1e-4)


def damaged(rows: Path, folder: Path, count: int) -> Path:
    shutil.copytree(rows.parent, folder, dirs_exist_ok=True)
    path = folder / rows.name
    lines = path.read_text().splitlines()
    for i in range(count):
        lines[i] = json.dumps({**json.loads(lines[i]), "label": "purple"})
    path.write_text("\n".join([*lines, "{not json"]))
    return path


def test_too_many_invalid_rows_are_an_error(tiny: Path, rows: Path, tmp_path: Path) -> None:
    path = damaged(rows, tmp_path, 3)
    warnings: list[str] = []
    with pytest.raises(DataError, match=r"4 of 31 rows are invalid") as error:
        evaluate_folder(tiny / "model", str(path), warn=warnings.append)
    assert "purple" in str(error.value)
    assert len(warnings) == 4
    assert any(f"{path}:31: not JSON" in line for line in warnings)


def test_few_invalid_rows_are_counted_and_reported(tiny: Path, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "lenient"
    shutil.copytree(tiny / "model", model)
    content = json.loads((model / "rayfuse.json").read_text())
    content["job"]["data"]["max_bad_rows"] = 0.5
    (model / "rayfuse.json").write_text(json.dumps(content))
    warnings: list[str] = []
    found = evaluate_folder(model, str(damaged(rows, tmp_path / "rows", 3)), warn=warnings.append)
    assert (found["rows"], found["invalid"], len(warnings)) == (27, 4, 4)


def test_a_missing_column_is_an_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("question,label\nwhat?,red\n")
    with pytest.raises(DataError, match="no column `text`"):
        evaluate_folder(tiny / "model", str(tmp_path / "other.csv"))


def test_progress_counts_rows(tiny: Path, rows: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_folder(
        tiny / "model", str(rows), batch_size=20, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(20, 30), (30, 30)]


def test_evaluation_rows_are_the_test_rows_or_the_held_out_ones(tiny: Path) -> None:
    job = Predictor(tiny / "model").job
    assert len(evaluation_rows(job, "test")[0]) == 24
    assert 0 < len(evaluation_rows(job, "validation")[0]) < 48
    of_fold = job.model_copy(update={"data": job.data.model_copy(update={"folds": 4, "fold": 2})})
    assert len(evaluation_rows(of_fold, "test")[0]) == 12

"""The numbers of an evaluation against ones counted by hand, answer by answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_rows

from rayfuse.errors import DataError
from rayfuse.model.predictor import Predictor
from rayfuse.registry.evaluate import evaluate_folder, judged_rows


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows"), 30, "unseen", seed=7)


def share_right(predictor: Predictor, path: Path, keep: set[str]) -> float:
    """Accuracy when only the inputs `keep` are shown: one row at a time, text replaced by none where it is left out."""
    right = 0
    lines = path.read_text().splitlines()
    for line in lines:
        row = json.loads(line)
        values: dict[str, Any] = {"text": row["text"]}
        if "image" in row and "image" in keep:
            values["image"] = (path.parent / row["image"]).read_bytes()
        answer = predictor.predict([values])[0]["outputs"]["answer"]
        right += answer["label"] == row["label"]
    return right / len(lines)


def test_numbers_are_those_that_one_counts_by_hand(tiny: Path, rows: Path) -> None:
    found = evaluate_folder(tiny / "model", str(rows), batch_size=7)
    predictor = Predictor(tiny / "model")
    assert found["metrics"]["answer/accuracy"] == pytest.approx(
        share_right(predictor, rows, {"image", "text"})
    )
    assert found["by_inputs"]["text"]["answer/accuracy"] == pytest.approx(
        share_right(predictor, rows, {"text"})
    )
    assert list(found["by_inputs"]) == ["image+text", "image", "text"]
    assert found["by_inputs"]["image+text"] == found["metrics"]
    assert (found["rows"], found["bad"]) == (30, 0)
    confusion = found["details"]["answer"]["confusion"]
    assert sum(map(sum, confusion)) == 30


def test_batches_do_not_change_the_numbers(tiny: Path, rows: Path) -> None:
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


def test_bad_rows_above_the_limit_stop_with_their_names(tiny: Path, rows: Path, tmp_path: Path) -> None:
    path = damaged(rows, tmp_path, 3)
    warned: list[str] = []
    with pytest.raises(DataError, match=r"4 of 31 rows cannot be used") as stopped:
        evaluate_folder(tiny / "model", str(path), warn=warned.append)
    assert "purple" in str(stopped.value)
    assert len(warned) == 4
    assert any(f"{path}:31: not JSON" in line for line in warned)


def test_bad_rows_below_the_limit_are_counted_and_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "lenient"
    shutil.copytree(tiny / "model", model)
    content = json.loads((model / "rayfuse.json").read_text())
    content["job"]["data"]["max_bad_rows"] = 0.5
    (model / "rayfuse.json").write_text(json.dumps(content))
    warned: list[str] = []
    found = evaluate_folder(model, str(damaged(rows, tmp_path / "rows", 3)), warn=warned.append)
    assert (found["rows"], found["bad"], len(warned)) == (27, 4, 4)


def test_data_without_the_column_is_an_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("question,label\nwhat?,red\n")
    with pytest.raises(DataError, match="no column `text`"):
        evaluate_folder(tiny / "model", str(tmp_path / "other.csv"))


def test_progress_counts_rows(tiny: Path, rows: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_folder(
        tiny / "model", str(rows), batch_size=20, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(20, 30), (30, 30)]


def test_a_job_is_judged_on_its_test_rows_or_those_that_it_held_out(tiny: Path) -> None:
    job = Predictor(tiny / "model").job
    assert len(judged_rows(job, "test")[0]) == 24
    assert 0 < len(judged_rows(job, "validation")[0]) < 48

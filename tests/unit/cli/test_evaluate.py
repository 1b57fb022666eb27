"""`rayfuse evaluate --explain`: its table, its JSON and its plots."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_model_folder

from rayfuse.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    make_model_folder(folder, 5)
    return folder


@pytest.fixture
def command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["evaluate", str(folder / "model"), "--data", str(folder / "data" / "test.jsonl")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_nothing_is_explained_by_default(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert list(run(capsys, *command)) == ["metrics", "by_inputs", "rows", "invalid"]
    assert not Path("plots").exists()


def test_json_has_contributions_and_plots(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    found = run(capsys, *command, "--plots", "why", "--explain", "1")
    assert list(found) == ["metrics", "by_inputs", "rows", "invalid", "explain"]
    task = found["explain"]["tasks"]["answer"]
    assert set(task["contributions"]) == {"image", "text"}
    assert task["rows_with"]["text"] == found["rows"] == 24
    assert found["explain"]["plots"] == ["why/row_01.png"]
    assert Path("why/row_01.png").is_file()
    assert found["explain"]["run_id"] is None


def test_the_text_has_a_table(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--explain", "0"]) == 0
    printed = capsys.readouterr().out
    assert "answer: contributions to the probability of the prediction, from" in printed
    assert "mean absolute" in printed
    assert "plots in" not in printed


def test_the_number_of_rows_may_be_left_out(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    found = run(capsys, *command, "--explain")
    assert len(found["explain"]["plots"]) == 6


def test_the_prediction_of_each_row_is_written(
    capsys: pytest.CaptureFixture[str], command: list[str], folder: Path
) -> None:
    rows = (folder / "data" / "test.jsonl").read_text().splitlines()
    (folder / "data" / "rows.jsonl").write_text("\n".join([*rows * 30, "{"]))
    command = [*command[:3], str(folder / "data" / "rows.jsonl")]
    found = run(capsys, *command, "--output", "out.jsonl")
    assert found["output"] == "out.jsonl"
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    predicted = [row for row in written if row["error"] is None]
    assert len(predicted) == found["rows"] == len(rows) * 30
    assert len(written) == len(predicted) + 1
    assert [row["answer_target"] for row in predicted] == [json.loads(row)["label"] for row in rows] * 30
    right = sum(row["answer"] == row["answer_target"] for row in predicted)
    assert right / len(predicted) == pytest.approx(found["metrics"]["answer/accuracy"])
    assert not Path("out.jsonl.parts").exists()

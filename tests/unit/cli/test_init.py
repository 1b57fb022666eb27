"""`rayfuse init`: the file, the table and the errors."""

import json
from pathlib import Path

import pytest

from rayfuse.cli import main
from rayfuse.spec.job import Job


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [f"{number * 7 % 60},{'red' if number % 3 else 'blue'},{number % 2}" for number in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["size,color,label", *rows]))
    return "rows.csv"


def test_it_writes_a_job(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", data, "--target", "label", "--no-plan"]) == 0
    job = Job.from_yaml("job.yaml")
    assert list(job.inputs["table"].source_columns) == ["size", "color"]
    shown = capsys.readouterr().out
    assert "size    number          whole numbers, 0 to 59" in shown
    assert "next: rayfuse train job.yaml" in shown
    assert "train: rows.csv" in Path("job.yaml").read_text()


def test_a_file_is_overwritten_on_request(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_text("mine")
    assert main(["init", data, "--target", "label", "--no-plan"]) == 2
    assert "job.yaml: the file exists" in capsys.readouterr().err
    assert Path("job.yaml").read_text() == "mine"
    assert main(["init", data, "--target", "label", "--no-plan", "--force"]) == 0
    assert Path("job.yaml").read_text().startswith("# Inferred from 60 rows")


def test_a_job_can_be_printed(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--task",
        "label=regression",
        "--exclude",
        "color",
        "--set",
        "train.epochs=3",
        "--name",
        "mine",
    ]
    assert main(["init", data, "--target", "label", "--output", "-", *options]) == 0
    text = capsys.readouterr().out
    assert "label: {type: regression}" in text
    assert "train: {epochs: 3}" in text
    assert "name: mine" in text
    assert "#   color: excluded" in text
    assert not Path("job.yaml").exists()


def test_json_has_the_reasons(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", data, "--target", "label", "--no-plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["file"], found["plan"]) == ("job.yaml", None)
    assert found["columns"]["size"] == {"input": "number", "reason": "whole numbers, 0 to 59"}
    assert found["columns"]["label"]["target"] == "classification"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["rows.csv"], "Missing option '--target'"),
        (["rows.csv", "--target", "label2"], "did you mean label"),
        (["rows.csv", "--target", "label", "--task", "label"], "'label' is not COLUMN=TYPE"),
        (["rows.csv", "--target", "label", "--task", "label=lottery"], "not a kind of task"),
        (["nothing.csv", "--target", "label"], "nothing.csv: no such file"),
        (["job.yaml", "--target", "label"], "a spec file, not data"),
        (["rows.csv", "--target", "label", "--output", "no/job.yaml"], "no/job.yaml: cannot be written"),
    ],
)
def test_errors(arguments: list[str], problem: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *arguments, "--no-plan"]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["rows.csv"], "rows.csv: data, not a job; name the column to predict with --target COLUMN"),
        (["."], "data, not a job"),
        (["job.yaml", "--target", "label"], "a spec file, not data"),
        (["rows.csv", "--exclude", "size"], "--task and --exclude belong to --target"),
        (["rows.csv", "--target", "label2"], "did you mean label"),
    ],
)
def test_errors_of_training_from_data(
    arguments: list[str], problem: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert problem in capsys.readouterr().err

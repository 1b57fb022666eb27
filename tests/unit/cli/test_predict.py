"""`rayfuse predict --data URL --output FILE`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_model_folder

from rayfuse.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    make_model_folder(folder, 0)
    return folder


@pytest.fixture
def command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["predict", str(folder / "model"), "--data", str(folder / "data" / "test.jsonl")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_json_has_counts_and_the_file(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    found = run(capsys, *command, "--output", "out.jsonl", "--keep", "text, image", "--scores")
    assert found.pop("seconds") > 0
    assert found == {"output": "out.jsonl", "rows": 24, "invalid": 0, "resumed": 0}
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert list(rows[0]) == [
        "text",
        "image",
        "answer",
        "answer_score",
        "answer_scores",
        "inputs_used",
        "error",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output is missing"),
        (["--output", "out.jsonl", "text=x"], "text=x: give values of one row or --data, not both"),
        (["--output", "out.jsonl", "--max-bad-rows", "many"], "many: expected a fraction from 0 to 1"),
        (["--output", "out.png"], "out.png: unsupported type of output"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], command: list[str], options: list[str], message: str
) -> None:
    assert message in run(capsys, *command, *options, code=2)["error"]["message"]


def test_options_of_files_need_data(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    found = run(capsys, *command[:2], "text=x", "--output", "out.jsonl", code=2)
    assert found["error"]["message"].startswith("--output: only for predictions of --data")


def test_too_many_invalid_rows_fail(
    capsys: pytest.CaptureFixture[str], command: list[str], folder: Path
) -> None:
    Path("rows.jsonl").write_text('{"text": "which"}\n{"text": null}\n')
    found = run(
        capsys,
        *command[:2],
        "--data",
        "rows.jsonl",
        "--output",
        "out.csv",
        "--max-bad-rows",
        "10%",
        code=1,
    )
    assert "above max_bad_rows of 10.0%" in found["error"]["message"]
    assert len(Path("out.csv").read_text().splitlines()) == 3

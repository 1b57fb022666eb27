"""Options that `rayfuse train` passes on."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_jobs
from click.testing import CliRunner

from rayfuse.cli import main
from rayfuse.cli.train import train

OUTCOME = {
    "model": "tiny",
    "version": 1,
    "metrics": {"answer/accuracy": 0.5},
    "evaluated_on": "test",
    "by_inputs": {"text": {"answer/accuracy": 0.5}},
    "run_id": "a1",
    "validation": {"loss": 1.0},
    "selection_metric": "loss",
    "best_epoch": 2,
    "epochs": 3,
    "stop_reason": "all epochs are done",
    "checkpoint": "runs/tiny/checkpoints/best",
    "run": "runs/tiny",
}


@pytest.mark.parametrize(
    ("options", "steps"), [([], 0), (["--profile"], 5), (["--profile", "--profile-steps", "2"], 2)]
)
def test_profile_option(
    options: list[str], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[Any] = []

    def train_and_register(*given: Any) -> dict[str, Any]:
        handed.append(given[3])
        return dict(OUTCOME)

    monkeypatch.setitem(
        sys.modules, "rayfuse.pipeline", SimpleNamespace(train_and_register=train_and_register)
    )
    tiny_jobs.tiny_job(tmp_path)
    result = CliRunner().invoke(train, [*options, str(tmp_path / "job.yaml")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert handed == [steps]


def test_quality_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed: list[Any] = []

    def train_and_register(*given: Any) -> dict[str, Any]:
        handed.append(given[0])
        return dict(OUTCOME)

    pipeline = SimpleNamespace(train_and_register=train_and_register)
    monkeypatch.setitem(sys.modules, "rayfuse.pipeline", pipeline)
    job = tiny_jobs.tiny_job(tmp_path)
    tiny_jobs.make_rows(tmp_path)
    assert main(["train", str(tmp_path / "job.yaml"), "--quality", "medium"]) == 0
    assert "quality medium, for " in capsys.readouterr().out
    assert handed[0].train.time_budget == 1200
    assert handed[0].train.epochs == job.train.epochs


def test_folds_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = {
        "folds": [
            {"answer/accuracy": 0.5, "answer/f1_macro": 0.4},
            {"answer/accuracy": 0.7, "answer/f1_macro": 0.6},
        ],
        "cross_validation": {
            "answer/accuracy": {"mean": 0.6, "std": 0.1414},
            "answer/f1_macro": {"mean": 0.5, "std": 0.1414},
        },
    }
    pipeline = SimpleNamespace(train_and_register=lambda *given: OUTCOME | folds)
    monkeypatch.setitem(sys.modules, "rayfuse.pipeline", pipeline)
    tiny_jobs.tiny_job(tmp_path)
    assert main(["train", str(tmp_path / "job.yaml")]) == 0
    text = capsys.readouterr().out
    assert (
        "cross-validation, 2 folds: answer/accuracy 0.6000 ± 0.1414\ntest: answer/accuracy 0.5000\n" in text
    )
    assert main(["train", str(tmp_path / "job.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in folds} == folds

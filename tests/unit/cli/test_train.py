"""Options that `rayfuse train` passes on."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_jobs
from click.testing import CliRunner

from rayfuse.cli.train import train

OUTCOME = {
    "model": "tiny",
    "version": 1,
    "metrics": {"answer/accuracy": 0.5},
    "evaluated_on": "test",
    "by_inputs": {"text": {"answer/accuracy": 0.5}},
    "run_id": "a1",
    "validation": {"loss": 1.0},
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

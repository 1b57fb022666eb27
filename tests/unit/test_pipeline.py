"""Records of runs that do not finish."""

from pathlib import Path
from typing import Any

import pytest

from rayfuse.errors import DataError, RunInterruptedError, UnavailableError
from rayfuse.pipeline import record_failure
from rayfuse.training.runs import RunFolder, RunStatus


class Ended(list[str]):
    """A stand-in for the tracker, which records how its MLflow run ended."""

    def finish(self, status: str) -> None:
        self.append(status)


@pytest.mark.parametrize(
    ("error", "status", "mlflow_status"),
    [
        (KeyboardInterrupt(), "interrupted", ["KILLED"]),
        (SystemExit(1), "interrupted", ["KILLED"]),
        (RunInterruptedError("interrupted"), "interrupted", ["KILLED"]),
        (DataError("no rows"), "failed", ["FAILED"]),
        (ZeroDivisionError(), "failed", ["FAILED"]),
        (UnavailableError("MLflow does not respond"), "failed", []),
    ],
)
def test_a_run_that_fails(
    error: BaseException, status: str, mlflow_status: list[str], tmp_path: Path
) -> None:
    run = RunFolder(str(tmp_path), RunStatus("run", "fingerprint"))
    tracker: Any = Ended()
    with pytest.raises(type(error)), record_failure(run, tracker):
        raise error
    assert run.status.status == status
    assert f'"status": "{status}"' in (run.read("run.json") or "")
    assert tracker == mlflow_status


def test_the_reason_is_raised_if_the_storage_is_gone(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "gone"), RunStatus("run", "fingerprint"))
    tracker: Any = Ended()
    with pytest.raises(DataError, match="no rows"), record_failure(run, tracker):
        raise DataError("no rows")
    assert tracker == ["FAILED"]


def test_a_successful_run_is_not_ended(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path), RunStatus("run", "fingerprint"))
    tracker: Any = Ended()
    with record_failure(run, tracker):
        run.save(status="finished")
    assert run.status.status == "finished"
    assert not tracker

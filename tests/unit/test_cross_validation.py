"""Cross-validation: folds that are trained in turn, resumed, and summarized."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.cross_validation import CrossValidation, cross_validate
from rayfuse.errors import RunInterruptedError
from rayfuse.spec.job import Job
from rayfuse.training.runs import RunFolder, create_run, heartbeat


class Folds:
    """A stand-in for the training of folds, with metrics that depend on the fold alone."""

    def __init__(self, interrupt_at: int = 0) -> None:
        self._interrupt_at = interrupt_at
        self.trained: list[int] = []
        self.logged: list[dict[str, float]] = []

    def train(self, job: Job, run: RunFolder) -> Mapping[str, float]:
        fold = job.data.fold
        assert fold
        if fold == self._interrupt_at:
            raise RunInterruptedError("interrupted")
        if run.status.status != "finished":
            self.trained.append(fold)
            heartbeat(run)
            run.save(status="finished")
        return {"answer/accuracy": fold / 10, "answer/f1_macro": 0.5} | (
            {"answer/rare": 1.0} if fold == 1 else {}
        )

    def validate(self, job: Job, run: RunFolder) -> CrossValidation:
        return cross_validate(job, run, self.train, self.logged.append)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return tiny_jobs.tiny_job(tmp_path, **{"data.test": None, "data.folds": 3})


@pytest.fixture
def run(job: Job) -> RunFolder:
    return create_run(job, {"train": "a"})


def test_mean_and_deviation_of_the_metrics_of_all_folds(job: Job, run: RunFolder) -> None:
    folds = Folds()
    result = folds.validate(job, run)
    assert folds.trained == [1, 2, 3]
    assert [fold["answer/accuracy"] for fold in result.folds] == [0.1, 0.2, 0.3]
    assert result.statistics == {
        "answer/accuracy": {"mean": pytest.approx(0.2), "std": pytest.approx(0.1)},
        "answer/f1_macro": {"mean": 0.5, "std": 0.0},
    }
    assert folds.logged == [result.metrics()]
    assert result.metrics()["cross_validation/answer/accuracy"] == pytest.approx(0.2)
    assert result.metrics()["cross_validation_std/answer/accuracy"] == pytest.approx(0.1)
    assert str(result) == "cross-validation, 3 folds: answer/accuracy 0.2000 ± 0.1000"


def test_an_interrupted_cross_validation_resumes_at_its_fold(job: Job, run: RunFolder) -> None:
    first, second, third = Folds(interrupt_at=2), Folds(), Folds()
    with pytest.raises(RunInterruptedError):
        first.validate(job, run)
    assert (first.trained, first.logged) == ([1], [])
    resumed = second.validate(job, run)
    assert second.trained == [2, 3]
    assert resumed == Folds().validate(job, create_run(job, {"train": "b"}))
    assert third.validate(job, run) == resumed
    assert (third.trained, third.logged) == ([], [])


def test_a_fold_keeps_the_run_alive(job: Job, run: RunFolder) -> None:
    Folds().validate(job, run)
    assert run.status.last_heartbeat > 0
    assert run.status.driver is not None


def test_a_metric_without_a_value_has_no_mean() -> None:
    found = CrossValidation([{"loss": 1.0}, {"loss": math.nan}]).statistics["loss"]
    assert math.isnan(found["mean"])
    assert math.isnan(found["std"])


@pytest.mark.parametrize("data", [{}, {"folds": 3, "fold": 2}])
def test_a_single_split_is_not_cross_validated(data: dict[str, Any], job: Job, run: RunFolder) -> None:
    single = job.model_copy(update={"data": job.data.model_copy(update={"folds": None, **data})})
    folds = Folds()
    result = folds.validate(single, run)
    assert (result.folds, result.statistics, folds.trained, folds.logged) == ([], {}, [], [])

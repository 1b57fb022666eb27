"""The connection to Ray, without Ray: environment settings, and `fit` in a thread."""

import os
import threading
from pathlib import Path

import pytest
import tiny_jobs
from ray.train import WorkerGroupError

from rayfuse.errors import DataError, ResourceError, SpecError
from rayfuse.training.ray_session import FitThread, connect, environment_defaults


def test_settings_of_the_user_are_kept_and_ours_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.delenv("RAY_TRAIN_ENABLE_STATE_TRACKING", raising=False)
    before = dict(os.environ)
    with environment_defaults(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="1", RAY_TRAIN_ENABLE_STATE_TRACKING="1"):
        assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
        assert os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"
    assert dict(os.environ) == before


def test_a_fit_that_ends_has_its_result() -> None:
    ready = threading.Event()
    fit = FitThread(lambda: ready.wait(60))
    assert not fit.wait(0)
    ready.set()
    assert fit.result() is True
    assert fit.wait(0)
    assert fit.error is None


def test_a_fit_that_fails_raises_the_cause() -> None:
    def fail() -> None:
        raise WorkerGroupError("rank 0 failed", {0: DataError("rows: none are left")})

    fit = FitThread(fail)
    with pytest.raises(DataError, match="rows: none are left"):
        fit.result()
    assert isinstance(fit.error, WorkerGroupError)


def test_a_dashboard_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(
        SpecError, match=r"RAY_ADDRESS: http://head:8265 is the address of a dashboard, .*HOST:6379"
    ):
        connect(tiny_jobs.tiny_job(tmp_path))


def test_a_ray_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/proc/no-folder")
    with pytest.raises(ResourceError, match=r"Ray did not start on this machine: .*set RAY_ADDRESS"):
        connect(tiny_jobs.tiny_job(tmp_path))

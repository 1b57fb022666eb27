"""Fixtures of tests of batches: a tiny job with audio, its rows and its preprocessor."""

from typing import Any

import pytest
import tiny_jobs
from reading import read_all

from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {"tasks.answer.classes": ["blue", "green", "high", "low", "red", "unknown"]}
    return tiny_jobs.tiny_job(tmp_path_factory.mktemp("batches"), audio=True, **overrides)


@pytest.fixture(scope="module")
def rows(job: Any) -> list[Row]:
    return read_all(job.data.train)[0]


@pytest.fixture(scope="module")
def preprocessor(job: Any) -> Preprocessor:
    return Preprocessor(job.inputs, job.tasks)

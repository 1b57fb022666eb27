"""Specs in every form that the API takes."""

from pathlib import Path

import pytest
import tiny_jobs

import rayfuse
from rayfuse.api.specs import as_spec
from rayfuse.errors import SpecError
from rayfuse.spec.job import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    found: Job = tiny_jobs.tiny_job(tmp_path)
    return found


def test_a_file_an_object_and_a_dict_are_the_same(job: Job, tmp_path: Path) -> None:
    content = job.model_dump(exclude_unset=True)
    for source in (tmp_path / "job.yaml", str(tmp_path / "job.yaml"), job, content):
        assert as_spec(source, Job, {"train.epochs": 7}).model_dump() == (
            job.override(**{"train.epochs": 7}).model_dump()
        )


def test_other_objects_are_rejected() -> None:
    with pytest.raises(SpecError, match="expected the path of a YAML file, a dict or a Job, not int"):
        rayfuse.train(5)  # type: ignore[arg-type]
    with pytest.raises(
        SpecError, match=r"Job takes keywords; for a YAML file write Job.from_yaml\('job.yaml'\)"
    ):
        Job("job.yaml")


def test_a_misspelled_parameter_is_suggested(job: Job) -> None:
    with pytest.raises(
        SpecError, match=r"resum: neither a parameter nor a key of the spec; did you mean resume\?"
    ):
        rayfuse.train(job, resum=True)
    with pytest.raises(SpecError, match=r"Job: fusionn: unknown key; did you mean fusion\?"):
        rayfuse.train(job, fusionn="x")
    with pytest.raises(SpecError, match="gpus: 0 is not a number of GPUs"):
        rayfuse.plan(job, gpus=0)

"""The shipped job reads real handwriting and real voices as well as the demo's rows."""

from pathlib import Path

import pytest

from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import SampleMaker
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

JOB = Path(__file__).parents[2] / "jobs" / "digit_arithmetic.yaml"


@pytest.mark.shared
def test_the_digit_job_reads_real_recordings(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(shared / "data" / "avmnist_smil"))
    job, dataset = load_dataset(load_spec(JOB, Job))
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {
        "train": len(dataset.splits["train"]),
        "validation": 4000 - len(dataset.splits["train"]),
        "test": 1000,
    }
    assert not any(dataset.bad.values())
    assert job.tasks["answer"].classes == list(range(19))
    media = {name: options for name, options in job.inputs.items() if options.type != "text"}
    sample = SampleMaker(media).from_row(dataset.splits["test"][0])
    assert sample.features["image"][0]["pixel_values"].shape == (3, 28, 28)
    assert sample.features["audio"][0]["waveform"].shape == (8000,)

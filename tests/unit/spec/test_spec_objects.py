"""Specs built from Python objects, and specs as YAML."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from rayfuse.data.dataset import fit
from rayfuse.data.rows import Row
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.job import Job
from rayfuse.spec.rows import InMemoryRows
from rayfuse.spec.service import Service
from rayfuse.spec.sweep import Sweep

JOB: dict[str, Any] = {
    "name": "reviews",
    "data": {"train": "rows.csv"},
    "inputs": {"text": {"type": "text", "encoder": {"type": "conv"}}},
    "fusion": {"type": "concat"},
    "tasks": {"stars": {"type": "classification"}},
}
ROWS = [{"text": "good", "stars": 5}, {"text": "bad", "stars": 1}]


def test_paths_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(**JOB)
    assert job.kind == "job"
    assert job.data.train == str(tmp_path / "rows.csv")
    assert job.output.storage == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"type": "concatt"}}, "Job: fusion: unknown type `concatt`; did you mean concat?"),
        ({"epochs": 3}, "Job: epochs: unknown key; did you mean train.epochs?"),
        ({"data": {"train": 5}}, "Job: data.train: 5 is not a table of rows; write the path of a data file"),
        ({"data": {"train": [1, 2]}}, "Job: data.train: \\[1, 2\\] is not a table of rows"),
        ({"data": {"train": {"train": pa.table({}), "test": pa.table({})}}}, "pass one split each of: train, test"),
    ],
)  # fmt: skip
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Job(**{**JOB, **changes})


@pytest.mark.parametrize("table", [ROWS, pd.DataFrame(ROWS), pa.Table.from_pylist(ROWS)])
def test_rows_in_memory_are_kept_as_they_are(table: Any) -> None:
    job = Job(**{**JOB, "data": {"train": table, "validation": table, "test": table}})
    for rows in (job.data.train, job.data.validation, job.data.test):
        assert isinstance(rows, InMemoryRows)
        assert rows.table is table
    changed = job.override(**{"train.epochs": 3})
    assert isinstance(changed.data.train, InMemoryRows)
    assert changed.data.train.table is table
    with pytest.raises(SpecError, match="rows in memory cannot be written to YAML; save them as parquet"):
        job.to_yaml()


def test_yaml_is_read_back_as_the_same_spec(tmp_path: Path) -> None:
    job = Job(**JOB).override(**{"train.epochs": 3, "compute.workers": [1, 2]})
    text = job.to_yaml(tmp_path / "job.yaml")
    assert (tmp_path / "job.yaml").read_text() == text
    assert "batch_size" not in text
    assert Job.from_yaml(tmp_path / "job.yaml").model_dump() == job.model_dump()
    assert Job.from_yaml(tmp_path / "job.yaml", **{"train.epochs": 5}).train.epochs == 5


def test_overrides_are_validated() -> None:
    job = Job(**JOB)
    assert job.override() is job
    with pytest.raises(SpecError, match=r"Job: train\.epoch: unknown key; did you mean epochs\?"):
        job.override(**{"train.epoch": 3})
    with pytest.raises(SpecError, match="Job: name.first: `name` is a value, not a mapping"):
        job.override(**{"name.first": "x"})


def test_secrets_are_masked_in_yaml() -> None:
    service = Service(name="reviews", model="models:/reviews@champion", auth={"keys": "a-key-that-is-secret"})
    assert "a-key-that-is-secret" not in service.to_yaml()


def test_every_kind_can_be_built() -> None:
    assert Cluster(image="registry.example/rayfuse:0.1", head={"cpu": 1, "memory": "1Gi"}).kind == "cluster"
    job = Job(**JOB)
    sweep = Sweep(name="s", job=job, metric="loss", space={"train.epochs": {"choice": [1, 2]}})
    assert sweep.job is job
    with pytest.raises(SpecError, match="Sweep: job: 5 is not a job; write the path of its spec file"):
        Sweep(name="s", job=5, metric="loss", space={"train.epochs": {"choice": [1, 2]}})


def test_a_sweep_keeps_the_job_that_it_was_given() -> None:
    job = Job(**JOB | {"data": {"train": "/data/rows.csv"}})
    sweep = Sweep(name="s", job=job, metric="stars/accuracy", space={"align.dim": {"choice": [8, 16]}})
    assert sweep.override(concurrency=2).job is job
    assert sweep.model_dump(mode="json")["job"] == job.model_dump(mode="json")


def test_a_fitted_job_is_overridden_and_written(tmp_path: Path) -> None:
    facts = {"type": "tabular", "columns": ["price", "city"], "encoder": {"type": "mlp"}}
    job = Job(**{**JOB, "inputs": {"facts": facts}})
    rows = [{"price": i, "city": "AB"[i % 2], "stars": i % 2} for i in range(20)]
    fitted = fit(job, [Row(row, "rows.csv", i) for i, row in enumerate(rows, 1)])
    assert fitted.override(**{"train.epochs": 3}).inputs == fitted.inputs
    fitted.to_yaml(tmp_path / "fitted.yaml")
    assert Job.from_yaml(tmp_path / "fitted.yaml").model_dump() == fitted.model_dump()

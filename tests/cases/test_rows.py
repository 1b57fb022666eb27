"""Cases whose value is that of rows, decoded and fitted, before any training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_cases import MakeCase, load_case

from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor

pytestmark = pytest.mark.shared


def r2_of_a_linear_model(job: Any, rows: Any) -> float:
    """Return the R² of a linear regression on the features of a table."""
    reader = Preprocessor(job.inputs, job.tasks)
    samples = [reader.from_row(row) for row in rows]
    [columns] = [np.stack([s.features["house"][0]["numbers"] for s in samples if s.features])]
    targets = np.array([s.targets["price"] for s in samples if s.features])
    design = np.column_stack([columns, np.ones(len(columns))])
    error = targets - design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    return float(1 - error.var() / targets.var())


@pytest.fixture(scope="module")
def houses(make_case: MakeCase) -> Path:
    return make_case("csv-numbers")


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("plain", {}),
        ("empty", {}),
        ("na", {}),
        ("spaces", {}),
        ("spaces_all", {}),
        ("thousands", {"thousands": ","}),
    ],
)
def test_csv_numbers(file: str, options: dict[str, str], houses: Path) -> None:
    """The price follows from the two columns, however their numbers are written."""
    job = load_case(houses / "job.yaml", F=f"{file}.csv")
    job = job.model_copy(update={"data": job.data.model_copy(update=options)})
    job, dataset = load_dataset(job)
    assert [column.type for column in job.inputs["house"].columns.values()] == ["number", "number"]
    assert not any(map(len, dataset.invalid.values()))
    missing = [row for row in dataset.splits["train"] if row.values["area"] is None]
    complete = [row for row in dataset.splits["train"] if row.values["area"] is not None]
    assert len(missing) <= 2
    assert r2_of_a_linear_model(job, complete) > 0.998


def test_csv_numbers_with_unknown_marks_are_reported(houses: Path) -> None:
    _, dataset = load_dataset(load_case(houses / "job.yaml", F="thousands.csv"))
    assert any(
        "WARNING column area is a category" in line and "data.thousands" in line for line in dataset.report
    )


@pytest.mark.parametrize("kind", ["12bit", "16bit"])
def test_sixteen_bit_pictures(kind: str, make_case: MakeCase) -> None:
    """A scan keeps its levels of gray: 8 bits leave 3 of 160."""
    from PIL import Image

    folder = make_case("sixteen-bit-pictures")
    job, dataset = load_dataset(load_case(folder / "job.yaml", KIND=kind))
    reader = Preprocessor(job.inputs)
    for row in dataset.splits["train"][:5]:
        levels = len(np.unique(np.asarray(Image.open(folder / row.values["scan"]))))
        [found] = reader.from_row(row).features["scan"]
        assert len(np.unique(found["pixel_values"])) == levels
        assert levels > 100


def test_absent_not_counted(make_case: MakeCase) -> None:
    """No image, an empty list and a list of nothing are the same."""
    folder = make_case("absent-not-counted")
    for name in ("null", "empty", "struct"):
        _, dataset = load_dataset(load_case(folder / "job.yaml", F=name))
        for split, rows in dataset.splits.items():
            assert f"missing: photos in {len(rows)} of {len(rows)} {split} rows (100.0%)" in dataset.report


@pytest.fixture(scope="module")
def labels(make_case: MakeCase) -> Path:
    return make_case("labels")


@pytest.mark.parametrize("name", ["floats", "decimal"])
def test_labels_are_whole_numbers_in_any_file(name: str, labels: Path) -> None:
    job, dataset = load_dataset(load_case(labels / f"{name}.yaml"))
    assert job.tasks["answer"].classes == [0, 1]
    assert not any(map(len, dataset.invalid.values()))
    targets = [job.tasks["answer"].target(row.values["label"]) for row in dataset.splits["validation"]]
    assert set(targets) == {0, 1}


def test_labels_that_yaml_reads_as_booleans(labels: Path) -> None:
    from rayfuse.errors import DataError

    with pytest.raises(DataError, match="older YAML also yes, no, on and off; put the classes in quotes"):
        load_dataset(load_case(labels / "yesno.yaml"))
    content = (labels / "yesno.yaml").read_text().replace("[no, yes]", json.dumps(["no", "yes"]))
    (labels / "quoted.yaml").write_text(content)
    job, dataset = load_dataset(load_case(labels / "quoted.yaml"))
    assert job.tasks["answer"].classes == ["no", "yes"]
    assert not any(map(len, dataset.invalid.values()))

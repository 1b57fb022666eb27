"""Folds of cross-validation: each row is tested in one of them, groups are whole and classes are balanced."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from split_jobs import make_job, make_rows, numbers

from rayfuse.data.ingest import read_splits
from rayfuse.errors import DataError

PATIENTS = {"patient": lambda i: i * i % 31}


def fold_numbers(
    folder: Path, rows: list[dict[str, Any]], folds: int, **data: Any
) -> list[dict[str, set[int]]]:
    """Return the values of `n` in each split of each fold, after checking that each row is in one split."""
    options = {"data.test": None, "data.folds": folds} | {f"data.{key}": value for key, value in data.items()}
    found = []
    for fold in range(1, folds + 1):
        splits = numbers(make_job(folder, rows, **options, **{"data.fold": fold}))
        assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == len(rows)
        found.append(splits)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"stratify": "label"}, {"group": "patient"}, {"group": "patient", "stratify": True}]
)
def test_each_row_is_tested_in_one_fold(options: dict[str, Any], tmp_path: Path) -> None:
    rows = make_rows(103, **PATIENTS)
    folds = fold_numbers(tmp_path, rows, 5, **options)
    assert sorted(n for splits in folds for n in splits["test"]) == list(range(103))
    assert all(8 <= len(splits["validation"]) <= 13 for splits in folds)
    if "group" not in options:
        assert sorted(len(splits["test"]) for splits in folds) == [20, 20, 21, 21, 21]


def test_folds_have_all_classes_and_a_class_of_one_row_is_trained_on(tmp_path: Path) -> None:
    names = ["common"] * 80 + ["seldom"] * 9 + ["once"]
    rows = make_rows(90, label=lambda i: names[i])
    for splits in fold_numbers(tmp_path, rows, 4, stratify=True):
        counts = {name: Counter(names[n] for n in found) for name, found in splits.items()}
        assert counts["test"]["common"] == 20
        assert counts["test"]["seldom"] in (2, 3)
        assert counts["validation"]["common"] == 8
        assert counts["train"]["once"] == 1


def test_groups_are_whole_and_their_classes_are_balanced(tmp_path: Path) -> None:
    rows = make_rows(240, patient=lambda i: i % 40, label=lambda i: "ill" if i % 40 < 8 else "well")
    folds = fold_numbers(tmp_path, rows, 4, group="patient", stratify=True)
    for splits in folds:
        patients = {name: {n % 40 for n in found} for name, found in splits.items()}
        assert sum(map(len, patients.values())) == 40
        assert len(patients["test"]) == 10
        assert len(patients["test"] & set(range(8))) == 2


def test_fractions_of_groups_have_all_classes(tmp_path: Path) -> None:
    rows = make_rows(400, patient=lambda i: i % 50, label=lambda i: "ill" if i % 50 < 10 else "well")
    splits = numbers(make_job(tmp_path, rows, **{"data.group": "patient", "data.stratify": "label"}))
    patients = {name: {n % 50 for n in found} for name, found in splits.items()}
    assert {name: len(found) for name, found in patients.items()} == {
        "train": 35,
        "validation": 5,
        "test": 10,
    }
    assert {name: len(found & set(range(10))) for name, found in patients.items()} == {
        "train": 7,
        "validation": 1,
        "test": 2,
    }


def test_copies_of_a_row_are_in_one_fold(tmp_path: Path) -> None:
    rows = [row for row in make_rows(50) for _ in range(3)]
    tested: list[int] = []
    for fold in range(1, 5):
        job = make_job(tmp_path, rows, **{"data.test": None, "data.folds": 4, "data.fold": fold})
        splits, _ = read_splits(job)
        found = {name: {row.values["n"] for row in of} for name, of in splits.items()}
        assert sum(map(len, found.values())) == 50
        tested += [row.values["n"] for row in splits["test"]]
    assert sorted(tested) == sorted(row["n"] for row in rows)


def test_validation_rows_of_a_file_leave_all_others_to_train_on(tmp_path: Path) -> None:
    rows = make_rows(60)
    job = make_job(
        tmp_path,
        rows,
        **{
            "data.validation": str(tmp_path / "train.jsonl"),
            "data.test": None,
            "data.folds": 3,
            "data.fold": 2,
        },
    )
    splits = numbers(job)
    assert {name: len(found) for name, found in splits.items()} == {"train": 40, "test": 20, "validation": 60}
    assert splits["train"].isdisjoint(splits["test"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"group": "patient"}, "column `patient` has 2 groups, and 3 folds need one each"),
        ({"stratify": "n"}, "fold 2 of 3 has no rows: there are 30"),
        (
            {"group": "patient", "stratify": "labell"},
            r"no column `labell` \(data.stratify\); did you mean label",
        ),
    ],
)
def test_folds_that_cannot_be_made(options: dict[str, str], problem: str, tmp_path: Path) -> None:
    rows = make_rows(30, patient=lambda i: i % 2)
    data = {f"data.{key}": value for key, value in options.items()}
    with pytest.raises(DataError, match=problem):
        read_splits(make_job(tmp_path, rows, **{"data.test": None, "data.folds": 3, "data.fold": 2}, **data))

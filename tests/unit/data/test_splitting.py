"""Splits that are held out from the training rows: by row, class, group and time."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
from split_jobs import make_job, make_rows, numbers

from rayfuse.data.dataset import load_dataset
from rayfuse.data.ingest import WorkItem, read_splits
from rayfuse.errors import DataError


def test_test_rows_leave_the_validation_rows_as_they_were(tmp_path: Path) -> None:
    rows = make_rows(400)
    before = numbers(make_job(tmp_path, rows, **{"data.test": None}))
    splits = numbers(make_job(tmp_path, rows))
    assert splits["validation"] == before["validation"]
    assert splits["train"] | splits["test"] == before["train"]
    assert 50 <= len(splits["test"]) <= 110
    assert splits["train"].isdisjoint(splits["test"])


def test_each_class_has_its_share_and_a_rare_class_is_trained_on(tmp_path: Path) -> None:
    names = ["common"] * 360 + ["seldom"] * 39 + ["once"]
    rows = make_rows(400, label=lambda i: names[i])
    job = make_job(tmp_path, rows, **{"data.stratify": True})
    counts = {name: Counter(names[n] for n in split) for name, split in numbers(job).items()}
    assert counts == {
        "train": {"common": 252, "seldom": 27, "once": 1},
        "validation": {"common": 36, "seldom": 4},
        "test": {"common": 72, "seldom": 8},
    }


def test_copies_of_a_row_are_in_one_split(tmp_path: Path) -> None:
    rows = [row for row in make_rows(100) for _ in range(2)]
    splits = numbers(make_job(tmp_path, rows, **{"data.stratify": "label"}))
    assert sum(map(len, splits.values())) == 100
    assert 65 <= len(splits["train"]) <= 75


@pytest.mark.parametrize("groups", [3, 7, 60])
def test_a_group_is_in_one_split(groups: int, tmp_path: Path) -> None:
    rows = make_rows(240, patient=lambda i: float(i % groups) if i % 2 else str(i % groups))
    splits = numbers(make_job(tmp_path, rows, **{"data.group": "patient"}))
    found = {name: {n % groups for n in split} for name, split in splits.items()}
    assert sum(map(len, found.values())) == groups
    if groups == 60:
        assert {name: len(split) for name, split in splits.items()} == {
            "train": 168,
            "validation": 24,
            "test": 48,
        }


@pytest.mark.parametrize(
    "stamp",
    [
        lambda i: i,
        lambda i: f"{1.7e9 + 3600 * i}",
        lambda i: f"2024-{i // 25 + 1:02}-{i % 25 + 1:02}",
        lambda i: f"2024-{i // 25 + 1:02}-{i % 25 + 1:02}T12:00:00Z",
    ],
)
def test_the_newest_rows_are_held_out(stamp: Callable[[int], Any], tmp_path: Path) -> None:
    rows = make_rows(100, day=stamp)
    splits = numbers(make_job(tmp_path, rows[::-1], **{"data.time": "day"}))
    assert splits == {
        "train": set(range(70)),
        "validation": set(range(70, 80)),
        "test": set(range(80, 100)),
    }


def test_rows_of_one_time_are_in_one_split(tmp_path: Path) -> None:
    rows = make_rows(100, day=lambda i: i // 15)
    splits = numbers(make_job(tmp_path, rows, **{"data.time": "day"}))
    days = {name: {n // 15 for n in split} for name, split in splits.items()}
    assert sum(map(len, days.values())) == 7
    assert max(days["train"]) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])


@pytest.mark.parametrize("option", ["stratify", "group", "time"])
def test_a_split_depends_on_neither_files_nor_their_order(option: str, tmp_path: Path) -> None:
    def backwards(function: Callable[[WorkItem], WorkItem], items: Sequence[WorkItem]) -> list[WorkItem]:
        return [function(item) for item in reversed(items)]

    rows = make_rows(120, user=lambda i: i % 24, day=lambda i: i)
    column = {"stratify": "label", "group": "user", "time": "day"}[option]
    job = make_job(tmp_path, rows, **{f"data.{option}": column})
    together = numbers(job)
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        tiny_jobs.write_rows(folder / f"{part}.jsonl", rows[2 - part :: 3])
    parts = job.model_copy(update={"data": job.data.model_copy(update={"train": str(folder)})})
    assert numbers(parts, backwards) == together


@pytest.mark.parametrize(
    ("options", "columns", "problem"),
    [
        ({"group": "patientt"}, {"patient": str}, r"no column `patientt` \(data.group\); did you mean patient"),
        ({"group": "patient"}, {"patient": lambda i: 1}, "column `patient` has 1 group, and 3 splits need one each"),
        ({"time": "day"}, {"day": lambda i: 3}, "of 40 rows leaves none for validation"),
        ({"time": "day"}, {"day": lambda i: i if i % 2 else "2024-05-31"}, "has both numbers and dates"),
        ({"time": "day"}, {"day": lambda i: None}, r"no row has a valid `day` \(data.time\); correct the rows, .*\n.*no `day`"),
        ({"time": "day"}, {"day": lambda i: "31.12.2023"}, r"no row has a valid `day` .*\n.*`day` \(data.time\) is '31.12.2023', not a time"),
        ({"stratify": "n"}, {}, "of 40 rows leaves none for validation"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_made(
    options: dict[str, Any], columns: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    job = make_job(tmp_path, make_rows(40, **columns), **{f"data.{k}": v for k, v in options.items()})
    with pytest.raises(DataError, match=problem):
        read_splits(job)


def test_rows_without_a_group_or_time_are_invalid(tmp_path: Path) -> None:
    rows = make_rows(60, patient=lambda i: i // 2, day=lambda i: i)
    rows[3]["patient"], rows[5]["day"] = None, "yesterday"
    for option, column, line in (("group", "patient", 4), ("time", "day", 6)):
        _, invalid = read_splits(make_job(tmp_path, rows, **{f"data.{option}": column}))
        [row] = invalid["train"]
        assert row.origin.endswith(f"train.jsonl:{line}")
        assert f"`{column}`" in row.reason


def test_the_report_describes_the_splits(tmp_path: Path) -> None:
    rows = make_rows(60, patient=lambda i: i // 2, day=lambda i: f"2024-01-{i // 2 + 1:02}")
    reports = {
        option: load_dataset(make_job(tmp_path, rows, **{f"data.{option}": column}))[1].report
        for option, column in (("stratify", True), ("group", "patient"), ("time", "day"))
    }
    assert "split by `label`: train 2 classes, validation 2 classes, test 2 classes" in reports["stratify"]
    assert "split by `patient`: train 21 groups, validation 3 groups, test 6 groups" in reports["group"]
    days = (
        "train 2024-01-01 to 2024-01-21, validation 2024-01-22 to 2024-01-24, test 2024-01-25 to 2024-01-30"
    )
    assert f"split by time `day`: {days}" in reports["time"]

"""Check of the first rows before training."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.dataset import load_dataset
from rayfuse.data.preview import MAX_ROWS, check_first_rows
from rayfuse.errors import DataError

TEXT = {"type": "text", "encoder": {"type": "conv", "hidden_size": 4}}


def texts(count: int, **values: Any) -> list[dict[str, Any]]:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(count)]
    return [{**row, **values} for row in rows]


def job_with(folder: Path, train: list[Any], test: list[Any] | None = None, **overrides: Any) -> Any:
    job = tiny_jobs.tiny_job(folder, **{"inputs": {"text": TEXT}} | overrides)
    tiny_jobs.write_rows(folder / "train.jsonl", train)
    tiny_jobs.write_rows(folder / "test.jsonl", test or texts(4))
    return job


def image_job(folder: Path, train: list[Any], **overrides: Any) -> Any:
    job = tiny_jobs.tiny_job(folder, **{"inputs.image.optional": False} | overrides)
    tiny_jobs.write_rows(folder / "train.jsonl", train)
    return job


LONG = 2 * MAX_ROWS


@pytest.mark.parametrize(
    ("train", "overrides", "problem"),
    [
        (texts(LONG, text=None), {}, "1000 of the first 1000 rows are invalid .*text: missing"),
        (texts(LONG, text=3), {}, "text: expected a text, got int"),
        (
            [{"txt": "a", "label": "x"}] * LONG,
            {},
            r"no column `text` \(inputs.text.column\); did you mean txt\?",
        ),
        (
            [{"text": "a", "labl": "x"}] * LONG,
            {},
            r"no column `label` \(tasks.answer.column\); did you mean labl\?",
        ),
        (texts(LONG, label=1.5), {}, r"tasks.answer: column `label`: no class .* not 1.5"),
        (texts(LONG, label=None), {}, r"train.jsonl:1: answer \(column label\): the label is missing"),
        (
            texts(LONG) + texts(1) + texts(LONG),
            {"tasks.answer.classes": ["x", "y"]},
            r"train.jsonl:1: answer \(column label\): label 'a' is not one of the 2 classes: 'x', 'y'",
        ),
        (texts(500) + texts(500, label=1) + texts(LONG, label="1"), {}, None),
        (
            texts(400) + texts(300, label=1) + texts(300, label="1") + texts(LONG),
            {},
            r"holds 1 \(.*train.jsonl:401\) and '1' \(.*train.jsonl:701\), one class in two forms",
        ),
        (
            texts(LONG),
            {"data.group": "patient"},
            r"no column `patient` \(data.group\); one of: label, text",
        ),
        (texts(30) + texts(12, text=1), {"data.max_bad_rows": 0.4}, None),
        ([{"text": i, "label": "ab"[i % 2]} for i in range(30)], {}, "train.jsonl: all 30 rows are invalid"),
    ],
)
def test_what_the_first_rows_show(
    train: list[Any], overrides: dict[str, Any], problem: str | None, tmp_path: Path
) -> None:
    job = job_with(tmp_path, train, **overrides)
    if problem is None:
        check_first_rows(job)
    else:
        with pytest.raises(DataError, match=f"(?s){problem}"):
            check_first_rows(job)


@pytest.mark.parametrize("value", [None, [], "absent.png", {"bytes": None, "path": None}])
def test_required_files_that_no_row_has(value: Any, tmp_path: Path) -> None:
    reason = "no such file" if value == "absent.png" else "missing|expected"
    with pytest.raises(DataError, match=f"(?s)rows are invalid.*train.jsonl:1: image: .*({reason})"):
        check_first_rows(image_job(tmp_path, texts(LONG, image=value)))


@pytest.mark.parametrize(
    "train",
    [
        texts(MAX_ROWS, label="a") + texts(MAX_ROWS),  # sorted by class
        texts(20, text=None) + texts(LONG),
        [{"text": "a", "label": "b"}] * MAX_ROWS + texts(LONG, image=None),
    ],
)
def test_what_later_rows_may_bring_is_no_error(train: list[Any], tmp_path: Path) -> None:
    check_first_rows(job_with(tmp_path, train))


def test_invalid_rows_that_the_full_pass_would_tolerate(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(MAX_ROWS, text=None) + texts(9 * MAX_ROWS), **{"data.max_bad_rows": 0.1})
    check_first_rows(job)
    with pytest.raises(DataError, match="above data.max_bad_rows of 9.0%"):
        check_first_rows(job.override(**{"data.max_bad_rows": 0.09}))


def test_a_column_that_only_later_rows_have(tmp_path: Path) -> None:
    person = {"type": "tabular", "columns": ["age", "height"], "encoder": {"type": "mlp"}}
    rows = texts(MAX_ROWS, age=3) + texts(10, age=3, height=2)
    job = job_with(tmp_path, rows, **{"inputs.person": person, "data.test": None})
    check_first_rows(job)
    load_dataset(job)
    (tmp_path / "train.csv").write_text("text,label,age,heights\n" + "a,x,1,2\nb,y,2,3\n" * MAX_ROWS)
    job = job.override(**{"data.train": str(tmp_path / "train.csv")})
    with pytest.raises(DataError, match=r"no column `height` .*did you mean heights\?"):
        check_first_rows(job)


def test_every_split_is_checked(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(LONG), texts(30, text=None))
    with pytest.raises(DataError, match=r"test.jsonl: all 30 rows are invalid"):
        check_first_rows(job)
    job = job.override(**{"data.test": str(tmp_path / "none.csv")})
    with pytest.raises(DataError, match="none.csv: no such file"):
        check_first_rows(job)


def test_only_the_first_rows_of_some_files_are_read(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(4))
    for number in range(9):
        path = tmp_path / f"part-{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in texts(300)) + "not JSON\n" * 9000)
    check_first_rows(job.override(**{"data.train": str(tmp_path / "part-*.jsonl")}))


def test_rows_of_a_fitted_job(tmp_path: Path) -> None:
    job, _ = load_dataset(job_with(tmp_path, texts(30)))
    tiny_jobs.write_rows(tmp_path / "other.jsonl", texts(LONG, label="c"))
    with pytest.raises(DataError, match="label 'c' is not one of the 2 classes: 'a', 'b'"):
        check_first_rows(job, {"rows": str(tmp_path / "other.jsonl")})


def test_rows_in_an_object_store_are_not_copied(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    with fs.open("/preview/train.jsonl", "wb") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in texts(LONG, text=1))
    job = job_with(tmp_path, texts(4)).override(**{"data.train": "memory://preview/train.jsonl"})
    with pytest.raises(DataError, match="1000 of the first 1000 rows are invalid"):
        check_first_rows(job)

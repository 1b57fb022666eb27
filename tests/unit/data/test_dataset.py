"""Reading, splitting, checking and describing the rows of a job: nothing is dropped silently."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs

from rayfuse.data.bad import BadRows
from rayfuse.data.dataset import Dataset, load_dataset
from rayfuse.data.reading import read_job_rows, read_splits
from rayfuse.data.rows import BadRow, Row
from rayfuse.data.splits import is_held_out
from rayfuse.errors import DataError


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def job_with(folder: Path, rows: list[dict[str, Any]], **overrides: Any) -> Any:
    """A job that classifies texts alone; no picture is read."""
    tiny_jobs.write_rows(folder / "train.jsonl", rows)
    job = tiny_jobs.tiny_job(folder, **{"data.test": None, "data.validation.fraction": 0.5, **overrides})
    return job.model_copy(update={"inputs": {"text": job.inputs["text"]}})


def texts(n: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i}", "n": i, "label": "even" if i % 2 == 0 else "odd", **changes} for i in range(n)
    ]


def total(dataset: Dataset) -> int:
    return sum(map(len, dataset.splits.values())) + sum(map(len, dataset.bad.values()))


def test_a_whole_dataset(tmp_path: Path) -> None:
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path))
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {
        "train": len(dataset.splits["train"]),
        "validation": 48 - len(dataset.splits["train"]),
        "test": 24,
    }
    assert 4 <= len(dataset.splits["validation"]) <= 20
    assert job.tasks["answer"].classes == ["blue", "green", "red", "unknown"]
    assert not any(dataset.bad.values())
    assert total(dataset) == 72


def test_bad_rows_are_counted_named_and_skipped(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 0.2})
    rows = read(tmp_path / "train.jsonl")
    rows[3]["image"] = "absent.png"
    rows[5]["label"] = ["red"]
    rows[7]["text"] = None
    with tiny_jobs.write_rows(tmp_path / "train.jsonl", rows).open("a") as file:
        file.write('{"text": \n')
    _, dataset = load_dataset(job)
    bad = {row.origin: row.reason for rows in dataset.bad.values() for row in rows}
    url = str(tmp_path / "train.jsonl")
    assert bad.keys() == {f"{url}:{line}" for line in (4, 6, 8, 49)}
    assert bad[f"{url}:4"] == "image: absent.png: no such file"
    assert "label ['red'] is not one of the 4 classes" in bad[f"{url}:6"]
    assert bad[f"{url}:8"] == "text: missing, and this input is required"
    assert bad[f"{url}:49"].startswith("not JSON")
    assert total(dataset) == 49 + 24
    assert dataset.findings[0].endswith("; 4 skipped")
    for origin, reason in bad.items():
        assert f"skipped: {origin}: {reason}" in dataset.findings


def test_too_many_bad_rows_stop_the_run_with_the_worst_offenders(tmp_path: Path) -> None:
    rows = texts(96) + texts(3, text=1) + texts(1, label=None)
    job = job_with(tmp_path, rows, **{"data.max_bad_rows": 0.03})
    with pytest.raises(DataError) as refused:
        load_dataset(job)
    first, *lines = str(refused.value).splitlines()
    assert first == "4 of 100 rows cannot be used (4.0%; data.max_bad_rows allows 3.0%):"
    assert len(lines) == 4
    assert lines[0].endswith(": text: a text belongs here, not int")
    assert lines[3].endswith("train.jsonl:100: answer (column label): the label is missing")


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(71) + texts(29, text=1), **{"data.max_bad_rows": "29%"})
    assert total(load_dataset(job)[1]) == 100


def test_offenders_are_grouped_by_their_reason() -> None:
    bad = [BadRow(f"a.jsonl:{i}", f"image: pictures/{i}.png: no such file") for i in range(5)]
    bad += [BadRow("b.jsonl:1", "answer (column label): label 'x y' is not one of the 3 classes")]
    bad += [BadRow("b.jsonl:2", "answer (column label): label 'z' is not one of the 3 classes")]
    assert BadRows([bad[-1], *bad[:-1]]).worst_offenders() == [
        "  a.jsonl:0: image: pictures/0.png: no such file",
        "  a.jsonl:1: image: pictures/1.png: no such file",
        "  a.jsonl:2: image: pictures/2.png: no such file",
        "  … and 2 more like these",
        "  b.jsonl:2: answer (column label): label 'z' is not one of the 3 classes",
        "  b.jsonl:1: answer (column label): label 'x y' is not one of the 3 classes",
    ]


def test_many_reasons_are_counted() -> None:
    letters = "abcdefghijkl"
    bad = BadRows(BadRow("f:1", f"reason {letter}") for letter in letters for _ in range(2))
    lines = bad.worst_offenders()
    assert len(lines) == 21
    assert lines[-1] == "  … and 4 more rows for 2 other reasons"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (texts(20, text=None), "20 of 20 rows cannot be used"),
        ([], "the file is empty"),
        (
            [{"txt": "a", "label": "x"}],
            r"no column `text` \(inputs.text.column\); did you mean txt\?\n.*: label, txt",
        ),
        ([{"text": "a", "answer": 1}], r"no column `label` \(tasks.answer.column\); one of: answer, text"),
        (
            texts(20, label=1.5),
            "column `label`: 0 classes in the training rows, at least 2 are needed; a class is a",
        ),
        (texts(20, label="a"), r"tasks.answer: column `label`: 1 classes \('a'\) in the training rows"),
        (
            texts(8) + texts(8, label=1) + texts(8, label="1"),
            r"holds 1 \(.*train.jsonl:\d+\) and '1' \(.*:\d+\), one class in two types; write one of them everywhere",
        ),
        (texts(1), "data.validation.fraction 0.5 of 1 rows leaves none for .*; give more rows"),
    ],
)
def test_data_that_cannot_be_trained_on(rows: list[dict[str, Any]], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        load_dataset(job_with(tmp_path, rows))


def test_a_file_of_which_no_line_is_a_row(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(4))
    (tmp_path / "train.jsonl").write_text("no\njson\n")
    with pytest.raises(
        DataError, match=r"(?s)train.jsonl: none of its 2 rows can be used:\n  .*:1: not JSON"
    ):
        load_dataset(job)


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "a,b\n"), ("rows.jsonl", "\ufeff\n")])
def test_a_file_without_rows(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: holds no rows"):
        read_job_rows(str(tmp_path / name), tiny_jobs.tiny_job(tmp_path))


def test_a_split_of_which_no_row_is_usable(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 1.0})
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [{"text": None, "label": "red"}])
    with pytest.raises(
        DataError, match=r"(?s)test: none of its 1 rows can be used:.*test.jsonl:1: text: missing"
    ):
        load_dataset(job)


def test_listed_classes_are_kept_and_others_are_bad(tmp_path: Path) -> None:
    overrides = {"data.max_bad_rows": 0.5, "tasks.answer.classes": ["odd", "even", "never"]}
    job, dataset = load_dataset(job_with(tmp_path, texts(30) + texts(3, label="other"), **overrides))
    assert job.tasks["answer"].classes == ["odd", "even", "never"]
    assert sum(map(len, dataset.bad.values())) == 3
    assert "WARNING answer: no usable train row is of class 'never'" in dataset.findings


@pytest.mark.parametrize("labels", [[0, 1], [False, True], ["a", "b"], [10**25, 7], [2.0, 3.0]])
def test_types_of_labels(labels: list[Any], tmp_path: Path) -> None:
    job, _ = load_dataset(job_with(tmp_path, [{"text": f"{i}", "label": labels[i % 2]} for i in range(20)]))
    classes = job.tasks["answer"].classes
    assert sorted(map(repr, classes)) == sorted(repr(int(v) if isinstance(v, float) else v) for v in labels)
    for label in labels:
        assert classes[job.tasks["answer"].target(label)] == label


def test_labels_of_mixed_types_stay_apart(tmp_path: Path) -> None:
    labels = [1, True, "x", 0]
    job, _ = load_dataset(job_with(tmp_path, [{"text": f"{i}", "label": labels[i % 4]} for i in range(40)]))
    assert [repr(known) for known in job.tasks["answer"].classes] == ["True", "0", "1", "'x'"]


def test_half_a_character_is_bad_wherever_it_counts(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(30), **{"data.max_bad_rows": 0.2})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "\\ud800", "label": "odd"}\n{"text": "fine", "label": "\\udfff"}\n')
        file.write('{"text": "\\ud83d\\ude00", "label": "odd", "unread": "\\ud800"}\n')
    job, dataset = load_dataset(job)
    assert job.tasks["answer"].classes == ["even", "odd"]
    reasons = [row.reason for rows in dataset.bad.values() for row in rows]
    assert any(reason.startswith("text: half a character at position 0") for reason in reasons)
    assert len(reasons) == 2
    json.dumps(dataset.findings, ensure_ascii=False).encode()


@pytest.mark.parametrize("wrong", [10**400, 1e39, "3", True, None, [1]])
def test_numbers_to_learn(wrong: Any, tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": "a", "price": i} for i in range(20)]
    overrides = {
        "tasks": {"price": {"type": "regression"}},
        "train.early_stopping": None,
        "data.max_bad_rows": 0.2,
    }
    job, dataset = load_dataset(job_with(tmp_path, [*rows, {"text": "wrong", "price": wrong}], **overrides))
    train = [row.values["price"] for row in dataset.splits["train"]]
    task = job.tasks["price"]
    assert task.mean == pytest.approx(sum(train) / len(train))
    assert f"price: mean {task.mean:.4g}, deviation {task.deviation:.4g} in train" in dataset.findings
    [bad] = [row.reason for rows in dataset.bad.values() for row in rows]
    assert bad.startswith("price (column price): ")
    assert len(bad) < 100


def test_csv_numbers_as_texts_and_labels(tmp_path: Path) -> None:
    lines = "".join(f"{i},{i % 2},{i / 2}\n" for i in range(20))
    (tmp_path / "train.csv").write_text(f"text,label,price\n{lines}21,1,cheap\n")
    overrides = {
        "data.train": str(tmp_path / "train.csv"),
        "tasks.price": {"type": "regression"},
        "data.max_bad_rows": 0.05,
    }
    job, dataset = load_dataset(job_with(tmp_path, texts(2), **overrides))
    assert job.tasks["answer"].classes == [0, 1]
    assert {type(row.values["text"]) for row in dataset.splits["train"]} == {str}
    [bad] = [str(row) for rows in dataset.bad.values() for row in rows]
    assert bad.endswith("train.csv:22: price (column price): target 'cheap' is not a finite number")


def test_a_split_depends_on_each_row_alone() -> None:
    rows = [Row({"text": f"{i}", "label": i % 3}, "a.jsonl", i) for i in range(400)]
    held_out = {row.values["text"] for row in rows if is_held_out(row, 0.25)}
    assert 70 <= len(held_out) <= 130
    moved = [Row(dict(reversed(row.values.items())), "b.csv", -row.line) for row in reversed(rows)]
    assert {row.values["text"] for row in moved if is_held_out(row, 0.25)} == held_out
    assert held_out < {row.values["text"] for row in rows if is_held_out(row, 0.5)}


def test_the_digest_follows_the_content_and_not_the_order(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    _, before = load_dataset(job)
    tiny_jobs.write_rows(tmp_path / "train.jsonl", list(reversed(read(tmp_path / "train.jsonl"))))
    assert load_dataset(job)[1].digests == before.digests
    named = next(row.values["image"] for row in before.splits["train"] if "image" in row.values)
    shutil.copy(tmp_path / named, tmp_path / "kept.png")
    tiny_jobs.write_image(tmp_path / named, "blue")
    changed = load_dataset(job)[1].digests
    assert changed["train"] != before.digests["train"]
    assert changed["test"] == before.digests["test"]
    shutil.copy(tmp_path / "kept.png", tmp_path / named)
    assert load_dataset(job)[1].digests == before.digests


def test_findings(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(100)]
    rows[1]["image"] = str(tiny_jobs.write_image(tmp_path / "a.png"))
    job = tiny_jobs.tiny_job(tmp_path, **{"data.test": str(tmp_path / "test.jsonl")})
    tiny_jobs.write_rows(tmp_path / "train.jsonl", [*rows, rows[3], rows[3]])
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [rows[3], rows[5], {"text": "new", "label": "rare"}])
    _, dataset = load_dataset(job)
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    side = next(name for name, split in dataset.splits.items() if rows[3] in [row.values for row in split])
    found = "\n".join(dataset.findings)
    assert f"rows: train {sizes['train']}, validation {sizes['validation']}, test 3" in found
    assert "answer: 2 classes in train; most common 'common' (" in found
    assert f"duplicates: 2 rows of {side} repeat another of its rows" in found
    assert f"of test are in {side} too; its metrics flatter the model" in found
    assert "missing: image in 3 of 3 test rows (100.0%)" in found


def test_copies_under_another_name_are_duplicates(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows = read(tmp_path / "train.jsonl")
    shutil.copy(tmp_path / rows[0]["image"], tmp_path / "copy.png")
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [{**rows[0], "image": "copy.png"}])
    assert any("WARNING duplicates: 1 rows of test" in line for line in load_dataset(job)[1].findings)


def test_an_optional_column_that_no_row_has_is_suspicious(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.image.column": "imgae"})
    assert (
        "WARNING missing: no train row has image; is inputs.image.column `imgae` right?"
        in load_dataset(job)[1].findings
    )


def test_validation_rows_of_their_own(tmp_path: Path) -> None:
    tiny_jobs.make_rows(tmp_path, 10, "held_out")
    job = tiny_jobs.tiny_job(tmp_path, **{"data.validation": str(tmp_path / "held_out.jsonl")})
    splits, bad = read_splits(job)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 48, "validation": 10, "test": 24}
    assert {name: len(rows) for name, rows in bad.items()} == {"train": 0, "validation": 0, "test": 0}

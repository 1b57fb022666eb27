"""Reading, splitting, fitting, validating and describing the rows of a job."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
from PIL import Image

from rayfuse.data.dataset import Dataset, describe, fit, load_dataset
from rayfuse.data.ingest import read_job_rows, read_splits
from rayfuse.data.invalid_rows import InvalidRows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import Preprocessor
from rayfuse.data.validation import SplitStats
from rayfuse.errors import DataError
from rayfuse.spec.job import Job


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def job_with(folder: Path, rows: list[dict[str, Any]], **overrides: Any) -> Any:
    """Return a job that classifies texts and reads no image."""
    tiny_jobs.write_rows(folder / "train.jsonl", rows)
    job = tiny_jobs.tiny_job(folder, **{"data.test": None, "data.validation.fraction": 0.5, **overrides})
    return job.model_copy(update={"inputs": {"text": job.inputs["text"]}})


def texts(n: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i}", "n": i, "label": "even" if i % 2 == 0 else "odd", **changes} for i in range(n)
    ]


def total(dataset: Dataset) -> int:
    return sum(map(len, dataset.splits.values())) + sum(map(len, dataset.invalid.values()))


def test_load_dataset(tmp_path: Path) -> None:
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path))
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {
        "train": len(dataset.splits["train"]),
        "validation": 48 - len(dataset.splits["train"]),
        "test": 24,
    }
    assert 4 <= len(dataset.splits["validation"]) <= 20
    assert job.tasks["answer"].classes == ["blue", "green", "red", "unknown"]
    assert not any(dataset.invalid.values())
    assert total(dataset) == 72


def test_invalid_rows_are_reported_and_skipped(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 0.2})
    rows = read(tmp_path / "train.jsonl")
    rows[3]["image"] = "absent.png"
    rows[5]["label"] = ["red"]
    rows[7]["text"] = None
    with tiny_jobs.write_rows(tmp_path / "train.jsonl", rows).open("a") as file:
        file.write('{"text": \n')
    _, dataset = load_dataset(job)
    bad = {row.origin: row.reason for rows in dataset.invalid.values() for row in rows}
    url = str(tmp_path / "train.jsonl")
    assert bad.keys() == {f"{url}:{line}" for line in (4, 6, 8, 49)}
    assert bad[f"{url}:4"] == "image: absent.png: no such file"
    assert "label ['red'] is not one of the 4 classes" in bad[f"{url}:6"]
    assert bad[f"{url}:8"] == "text: missing, and this input is required"
    assert bad[f"{url}:49"].startswith("not JSON")
    assert total(dataset) == 49 + 24
    assert dataset.report[0].endswith("; 4 skipped")
    for origin, reason in bad.items():
        assert f"skipped: {origin}: {reason}" in dataset.report


def test_too_many_invalid_rows_stop_the_run(tmp_path: Path) -> None:
    rows = texts(96) + texts(3, text=1) + texts(1, label=None)
    job = job_with(tmp_path, rows, **{"data.max_bad_rows": 0.03})
    with pytest.raises(DataError) as rejected:
        load_dataset(job)
    first, *lines = str(rejected.value).splitlines()
    assert (
        first
        == "4 of 100 rows are invalid (4.0%), above data.max_bad_rows of 3.0%; correct them or raise it:"
    )
    assert len(lines) == 4
    assert lines[0].endswith(": text: expected a text, got int")
    assert "train.jsonl:100: answer (column label): the label is missing (" in lines[3]


def test_the_limit_of_invalid_rows_is_inclusive(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(71) + texts(29, text=1), **{"data.max_bad_rows": "29%"})
    assert total(load_dataset(job)[1]) == 100


def test_invalid_rows_are_grouped_by_reason() -> None:
    bad = [InvalidRow(f"a.jsonl:{i}", f"image: images/{i}.png: no such file") for i in range(5)]
    bad += [InvalidRow("b.jsonl:1", "answer (column label): label 'x y' is not one of the 3 classes")]
    bad += [InvalidRow("b.jsonl:2", "answer (column label): label 'z' is not one of the 3 classes")]
    assert InvalidRows([bad[-1], *bad[:-1]]).top_reasons() == [
        "  a.jsonl:0: image: images/0.png: no such file",
        "  a.jsonl:1: image: images/1.png: no such file",
        "  a.jsonl:2: image: images/2.png: no such file",
        "  … and 2 more like these",
        "  b.jsonl:2: answer (column label): label 'z' is not one of the 3 classes",
        "  b.jsonl:1: answer (column label): label 'x y' is not one of the 3 classes",
    ]


def test_rare_reasons_are_counted() -> None:
    letters = "abcdefghijkl"
    invalid = InvalidRows(InvalidRow("f:1", f"reason {letter}") for letter in letters for _ in range(2))
    lines = invalid.top_reasons()
    assert len(lines) == 21
    assert lines[-1] == "  … and 4 more rows for 2 other reasons"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (texts(20, text=None), "20 of 20 rows are invalid"),
        ([], "the file is empty"),
        (
            [{"txt": "a", "label": "x"}],
            r"no column `text` \(inputs.text.column\); did you mean txt\?\n.*: label, txt",
        ),
        ([{"text": "a", "answer": 1}], r"no column `label` \(tasks.answer.column\); one of: answer, text"),
        (
            texts(20, label=1.5),
            "column `label`: no class in the training rows, at least 2 are needed; a class is a text, an integer, or true and false, not 1.5",
        ),
        (texts(20, label="a"), r"tasks.answer: column `label`: one class \('a'\) in the training rows"),
        (
            texts(8) + texts(8, label=1) + texts(8, label="1"),
            r"holds 1 \(.*train.jsonl:\d+\) and '1' \(.*:\d+\), one class in two forms; write one of them everywhere",
        ),
        (texts(1), "data.validation.fraction 0.5 of 1 rows leaves none for .*; provide more rows"),
    ],
)
def test_data_that_cannot_be_used_for_training(
    rows: list[dict[str, Any]], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        load_dataset(job_with(tmp_path, rows))


def test_an_input_whose_files_are_absent(tmp_path: Path) -> None:
    sensor = {"type": "timeseries", "channels": 2, "encoder": {"type": "conv"}}
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.sensor": sensor, "data.test": None})
    tiny_jobs.write_rows(tmp_path / "train.jsonl", [{**row, "sensor": "a.csv"} for row in texts(20)])
    with pytest.raises(
        DataError,
        match=r"inputs.sensor: no training row has a valid .*; .*train.jsonl:\d+: sensor: a.csv: no such file",
    ):
        load_dataset(job)


def test_a_file_without_valid_lines(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(4))
    (tmp_path / "train.jsonl").write_text("no\njson\n")
    with pytest.raises(DataError, match=r"(?s)train.jsonl: all 2 rows are invalid:\n  .*:1: not JSON"):
        load_dataset(job)


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "a,b\n"), ("rows.jsonl", "\ufeff\n")])
def test_a_file_without_rows(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: no rows"):
        read_job_rows(str(tmp_path / name), tiny_jobs.tiny_job(tmp_path))


def test_a_split_without_valid_rows(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 1.0})
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [{"text": None, "label": "red"}])
    with pytest.raises(DataError, match=r"(?s)test: all 1 rows are invalid:.*test.jsonl:1: text: missing"):
        load_dataset(job)


def test_labels_outside_of_listed_classes_are_invalid(tmp_path: Path) -> None:
    overrides = {"data.max_bad_rows": 0.5, "tasks.answer.classes": ["odd", "even", "never"]}
    job, dataset = load_dataset(job_with(tmp_path, texts(30) + texts(3, label="other"), **overrides))
    assert job.tasks["answer"].classes == ["odd", "even", "never"]
    assert sum(map(len, dataset.invalid.values())) == 3
    assert "WARNING answer: no valid train row has class 'never'" in dataset.report


@pytest.mark.parametrize("labels", [[0, 1], [False, True], ["a", "b"], [10**25, 7], [2.0, 3.0]])
def test_types_of_labels(labels: list[Any], tmp_path: Path) -> None:
    job, _ = load_dataset(job_with(tmp_path, [{"text": f"{i}", "label": labels[i % 2]} for i in range(20)]))
    classes = job.tasks["answer"].classes
    assert sorted(map(repr, classes)) == sorted(repr(int(v) if isinstance(v, float) else v) for v in labels)
    for label in labels:
        assert classes[job.tasks["answer"].target(label)] == label


def test_labels_of_different_types_are_different_classes(tmp_path: Path) -> None:
    labels = [1, True, "x", 0]
    job, _ = load_dataset(job_with(tmp_path, [{"text": f"{i}", "label": labels[i % 4]} for i in range(40)]))
    assert [repr(known) for known in job.tasks["answer"].classes] == ["True", "0", "1", "'x'"]


def test_lone_surrogates_are_invalid_in_columns_that_are_read(tmp_path: Path) -> None:
    job = job_with(tmp_path, texts(30), **{"data.max_bad_rows": 0.2})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "\\ud800", "label": "odd"}\n{"text": "fine", "label": "\\udfff"}\n')
        file.write('{"text": "\\ud83d\\ude00", "label": "odd", "unread": "\\ud800"}\n')
    job, dataset = load_dataset(job)
    assert job.tasks["answer"].classes == ["even", "odd"]
    reasons = [row.reason for rows in dataset.invalid.values() for row in rows]
    assert any(reason.startswith("text: lone surrogate") for reason in reasons)
    assert len(reasons) == 2
    json.dumps(dataset.report, ensure_ascii=False).encode()


@pytest.mark.parametrize("wrong", [10**400, 1e39, "3 kg", True, None, [1]])
def test_regression_targets(wrong: Any, tmp_path: Path) -> None:
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
    assert f"price: mean {task.mean:.4g}, standard deviation {task.std:.4g} in train" in dataset.report
    [bad] = [row.reason for rows in dataset.invalid.values() for row in rows]
    assert bad.startswith("price (column price): ")
    assert len(bad) < 100


def test_types_of_csv_cells_follow_their_use(tmp_path: Path) -> None:
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
    [bad] = [str(row) for rows in dataset.invalid.values() for row in rows]
    assert bad.endswith("train.csv:22: price (column price): target 'cheap' is not a finite number")


def test_the_split_of_a_row_depends_on_its_values_alone() -> None:
    rows = [Row({"text": f"{i}", "label": i % 3}, "a.jsonl", i) for i in range(400)]
    held_out = {row.values["text"] for row in rows if row.position() < 0.25}
    assert 70 <= len(held_out) <= 130
    moved = [Row(dict(reversed(row.values.items())), "b.csv", -row.line) for row in reversed(rows)]
    assert {row.values["text"] for row in moved if row.position() < 0.25} == held_out
    assert held_out < {row.values["text"] for row in rows if row.position() < 0.5}


def test_digests_depend_on_content_and_not_on_order(tmp_path: Path) -> None:
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


def test_report(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(100)]
    rows[1]["image"] = str(tiny_jobs.write_image(tmp_path / "a.png"))
    job = tiny_jobs.tiny_job(tmp_path, **{"data.test": str(tmp_path / "test.jsonl")})
    tiny_jobs.write_rows(tmp_path / "train.jsonl", [*rows, rows[3], rows[3]])
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [rows[3], rows[5], {"text": "new", "label": "rare"}])
    _, dataset = load_dataset(job)
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    side = next(name for name, split in dataset.splits.items() if rows[3] in [row.values for row in split])
    found = "\n".join(dataset.report)
    assert f"rows: train {sizes['train']}, validation {sizes['validation']}, test 3" in found
    assert "answer: 2 classes in train; most common 'common' (" in found
    assert f"duplicates: 2 rows of {side} are copies of other rows of it" in found
    assert f"of test are also in {side}; its metrics are too optimistic" in found
    assert "missing: image in 3 of 3 test rows (100.0%)" in found


class ReadOnce(list[Row]):
    """Rows that can be iterated once."""

    def __iter__(self) -> Iterator[Row]:
        assert not vars(self), "the rows are read again"
        self.was_read = True
        return super().__iter__()


def test_the_range_of_deep_images_is_fitted_and_kept(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    for number, row in enumerate(read(tmp_path / "train.jsonl")):
        if row.get("image"):
            pixels = np.random.default_rng(number).integers(1000, 1500, (8, 8)).astype(np.uint16)
            pixels[0, :2] = 1000, 1500
            Image.fromarray(pixels).save(tmp_path / row["image"])
    fitted, dataset = load_dataset(job)
    assert fitted.inputs["image"].range == (1000, 1500)
    assert not any("256 levels" in line for line in dataset.report)
    again = Job.model_validate(fitted.model_dump(mode="json"))
    assert again.inputs["image"] == fitted.inputs["image"]
    row = next(row for row in dataset.splits["train"] if row.values.get("image"))
    [features] = Preprocessor(again.inputs).from_row(row).features["image"]
    assert features["pixel_values"].min() < -0.8
    assert features["pixel_values"].max() > 0.8
    job.inputs["image"] = fitted.inputs["image"].model_copy(update={"range": "dtype"})
    lines = [line for line in load_dataset(job)[1].report if "256 levels in `range: dtype`" in line]
    assert [line.partition(":")[0] for line in lines] == ["image, train", "image, validation"]


def test_the_report_takes_one_pass(tmp_path: Path) -> None:
    tabular = {"type": "tabular", "columns": ["n", "m"], "encoder": {"type": "mlp"}, "optional": True}
    parity = {"type": "classification", "column": "parity"}
    overrides = {"data.test": None, "data.validation.fraction": 0.5, "tasks.other": parity}
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.numbers": tabular, **overrides})
    rows = [{**row, "parity": row["n"] % 2, "n": row["n"] or None, "m": 1.5} for row in texts(40)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    job, dataset = load_dataset(
        job.model_copy(update={"inputs": {name: job.inputs[name] for name in ("text", "numbers")}})
    )
    again = Dataset(
        {name: ReadOnce(rows) for name, rows in dataset.splits.items()},  # type: ignore[arg-type]
        dataset.invalid,
        dataset.digests,
    )
    stats = {name: SplitStats(name, tmp_path) for name in dataset.splits}
    lines = list(describe(again, job, stats))
    assert lines == dataset.report
    assert sum("classes in train" in line for line in lines) == 2
    assert sum("column n is missing in 1 of" in line for line in lines) == 1


def test_copies_under_another_name_are_duplicates(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    rows = read(tmp_path / "train.jsonl")
    shutil.copy(tmp_path / rows[0]["image"], tmp_path / "copy.png")
    tiny_jobs.write_rows(tmp_path / "test.jsonl", [{**rows[0], "image": "copy.png"}])
    assert any("WARNING duplicates: 1 rows of test" in line for line in load_dataset(job)[1].report)


def test_a_warning_for_an_optional_column_that_no_row_has(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.image.column": "imgae"})
    assert (
        "WARNING missing: no train row has image; is inputs.image.column `imgae` right?"
        in load_dataset(job)[1].report
    )


def test_validation_rows_from_a_file(tmp_path: Path) -> None:
    tiny_jobs.make_rows(tmp_path, 10, "held_out")
    job = tiny_jobs.tiny_job(tmp_path, **{"data.validation": str(tmp_path / "held_out.jsonl")})
    splits, bad = read_splits(job)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 48, "validation": 10, "test": 24}
    assert {name: len(rows) for name, rows in bad.items()} == {"train": 0, "validation": 0, "test": 0}


def test_all_inputs_and_tasks_are_fitted_in_one_pass(tmp_path: Path) -> None:
    encoder = {"type": "mlp"}
    overrides = {
        "inputs.person": {"type": "tabular", "columns": ["m", "city"], "encoder": encoder},
        "inputs.items": {"type": "item_sequence", "encoder": {"type": "embedding"}},
        "tasks.n": {"type": "regression"},
        "tasks.answer.class_weights": "balanced",
        "train.early_stopping": None,
    }
    rows = [{**row, "m": 1, "city": "Rome", "items": [1, 2]} for row in texts(20)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    job = tiny_jobs.tiny_job(tmp_path, **{"data.test": None, **overrides})
    stored, _ = read_job_rows(job.data.train, job)
    passes = 0

    def count_passes() -> Iterator[Row]:
        nonlocal passes
        passes += 1
        yield from stored

    class Counted:
        __iter__ = staticmethod(count_passes)

    fitted = fit(job, Counted())
    assert passes == 1
    assert fitted.tasks["answer"].class_weights == {"even": 1.0, "odd": 1.0}
    assert fitted.tasks["n"].mean == 9.5
    assert fitted.inputs["items"].vocabulary == ["1", "2"]
    assert fitted.inputs["person"].category_vocabularies == {"city": ["Rome"]}


def test_a_column_is_numeric_until_a_text_occurs(tmp_path: Path) -> None:
    person = {"type": "tabular", "columns": ["m"], "encoder": {"type": "mlp"}}
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.person": person})
    labels = [{"text": "a", "label": label} for label in "ab"]

    def fit_columns(values: list[Any]) -> Any:
        rows = [Row({**labels[n % 2], "m": value}, "rows.jsonl", n) for n, value in enumerate(values)]
        return fit(job, rows).inputs["person"]

    assert fit_columns([1, 2, 3]).numeric_columns == ["m"]
    assert fit_columns([1, 2, 2, 1, 2, "x", "x"]).category_vocabularies == {"m": ["2", "1", "x"]}
    assert fit_columns([*range(10_001)]).numeric_columns == ["m"]
    with pytest.raises(
        DataError,
        match=r"inputs.person: column `m`: 'x' follows more than 10000 distinct numbers; write `m: category`",
    ):
        fit_columns([*range(10_001), "x"])


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ({}, {}),
        ({7: "NA", 17: " "}, {}),
        ({i: f" {1000 + i}" for i in range(40)}, {}),
        ({i: f'"{1000 + i:,}"' for i in range(40)}, {"data.thousands": ","}),
        ({i: f'"{1000 + i},0"' for i in range(40)}, {"data.decimal": ","}),
        ({7: "?"}, {"data.missing_values": ["?"]}),
    ],
    ids=["plain", "missing marks", "white space", "thousands", "decimal comma", "own mark"],
)
def test_numbers_of_csv_files_however_they_are_written(
    cells: dict[int, str], options: dict[str, Any], tmp_path: Path
) -> None:
    lines = [f"{cells.get(i, 1000 + i)}, {'ab'[i % 2]},{i % 2}.0" for i in range(40)]
    (tmp_path / "houses.csv").write_text("\n".join(["area,town,sold", *lines]))
    job = Job(
        name="houses",
        data={"train": str(tmp_path / "houses.csv"), "validation": str(tmp_path / "houses.csv")},
        inputs={"house": {"type": "tabular", "columns": ["area", "town"], "encoder": {"type": "mlp"}}},
        fusion={"type": "concat"},
        tasks={"sold": {"type": "classification"}},
        output={"storage": str(tmp_path / "runs")},
    ).override(**options)
    fitted, dataset = load_dataset(job)
    area, town = fitted.inputs["house"].columns.values()
    assert (area.type, town.type, town.vocabulary) == ("number", "category", ["a", "b"])
    assert area.center == pytest.approx(1019.5, abs=1)
    assert fitted.tasks["sold"].classes == [0, 1]
    assert not any("WARNING column" in line for line in dataset.report)


def test_a_number_that_is_not_read_as_one_is_reported(tmp_path: Path) -> None:
    lines = [f"{'n/k' if i == 7 else i},{i % 2}" for i in range(40)]
    (tmp_path / "houses.csv").write_text("\n".join(["area,sold", *lines]))
    job = Job(
        name="houses",
        data={"train": str(tmp_path / "houses.csv"), "validation": str(tmp_path / "houses.csv")},
        inputs={
            "house": {"type": "tabular", "columns": ["area"], "min_frequency": 1, "encoder": {"type": "mlp"}}
        },
        fusion={"type": "concat"},
        tasks={"sold": {"type": "classification"}},
        output={"storage": str(tmp_path / "runs")},
    )
    _, dataset = load_dataset(job)
    assert any(
        "house, train: WARNING column area is a category, although 39 of its values look like numbers: 'n/k' (1)"
        in line
        for line in dataset.report
    )


def test_numbers_are_read_from_texts_in_every_format(tmp_path: Path) -> None:
    rows = [{"area": f" {1000 + i}", "code": "NA", "price": f"{i}.5"} for i in range(40)]
    (tmp_path / "houses.jsonl").write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "area": "NA"}])))
    columns = {"area": "number", "code": "category"}
    job = Job(
        name="houses",
        data={"train": str(tmp_path / "houses.jsonl"), "validation": str(tmp_path / "houses.jsonl")},
        inputs={"house": {"type": "tabular", "columns": columns, "encoder": {"type": "mlp"}}},
        fusion={"type": "concat"},
        tasks={"price": {"type": "regression"}},
        output={"storage": str(tmp_path / "runs")},
    )
    fitted, dataset = load_dataset(job)
    assert fitted.inputs["house"].columns["area"].center == pytest.approx(1019.5)
    assert fitted.inputs["house"].columns["code"].vocabulary == ["NA"]
    assert fitted.tasks["price"].mean == pytest.approx(19.5, abs=0.6)
    assert "house, train: column area is missing in 1 of 41 rows" in dataset.report


def test_targets_with_marks_name_the_option(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "price": f"{1000 + i:,}"} for i in range(20)]
    overrides = {"tasks": {"price": {"type": "regression"}}, "train.early_stopping": None}
    with pytest.raises(
        DataError, match=r"no numbers in the training rows, .* '1,0\d\d'; set `data.thousands`"
    ):
        load_dataset(job_with(tmp_path, rows, **overrides))

"""Drafts of jobs, from files of many kinds."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.schema_inference.draft import draft_job
from rayfuse.schema_inference.job_draft import JobDraft
from rayfuse.spec.job import Job

TEXTS = ["runs quietly today", "strong vibration and noise", "leaks oil at the seal"]


def make_rows(count: int = 200) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "row_id": f"r{number:04d}",
            "note": f"{rng.choice(TEXTS)} {number}" if number % 10 else None,
            "machine kind": rng.choice(["fan", "pump"]),
            "hours": rng.randrange(20_000),
            "patient_id": number % 60,
            "seen": f"2026-01-{1 + number % 28:02d}",
            "severity": rng.choice(["low", "medium", "high"]),
        }
        for number in range(count)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_jobs.write_rows(tmp_path / "rows.jsonl", make_rows())


def reload(drafted: JobDraft, folder: Path) -> Job:
    path = folder / "job.yaml"
    path.write_text(drafted.to_yaml(folder))
    return Job.from_yaml(path)


def test_a_table_with_texts(file: Path, tmp_path: Path) -> None:
    drafted = draft_job(str(file), ["severity"])
    job = drafted.job
    assert {name: options.type for name, options in job.inputs.items()} == {
        "table": "tabular",
        "note": "text",
    }
    assert list(job.inputs["table"].source_columns) == ["machine kind", "hours"]
    assert job.inputs["note"].optional
    assert not job.inputs["table"].optional
    assert job.tasks["severity"].model_dump(include={"type", "classes"}) == {
        "type": "ordinal",
        "classes": ["low", "medium", "high"],
    }
    assert job.data.fractions == {"validation": 0.2, "test": 0.2}
    assert job.data.stratify is True
    assert set(drafted.left_out) == {"row_id", "patient_id", "seen"}
    assert reload(drafted, tmp_path).model_dump(exclude={"output"}) == job.model_dump(exclude={"output"})


def test_the_yaml_has_the_reasons_and_relative_paths(file: Path, tmp_path: Path) -> None:
    text = draft_job(str(file), ["severity"]).to_yaml(tmp_path / "jobs")
    assert text.startswith("# Inferred from 200 rows.")
    assert "  train: ../rows.jsonl\n" in text
    assert "  # group: patient_id  # no patient_id in two splits" in text
    assert "  # time: seen  #" in text
    assert "machine kind: category              # 2 values: " in text
    assert "10.0% missing" in text
    assert "  #   row_id: identifies one of 200" in text
    assert "output" not in text


def test_a_preset_may_choose_encoders_and_sizes(file: Path) -> None:
    options = draft_job(str(file), ["severity"], for_preset=True).job.inputs["note"]
    assert options.model_fields_set == {"type", "column", "optional"}
    given = draft_job(str(file), ["severity"]).job.inputs["note"]
    assert (given.encoder.type, given.max_tokens) == ("ngrams", 32)


def test_several_targets_and_types(file: Path) -> None:
    drafted = draft_job(
        str(file), ["severity", "hours"], tasks={"severity": "classification"}, exclude=["note"]
    )
    job = drafted.job
    assert {name: task.type for name, task in job.tasks.items()} == {
        "severity": "classification",
        "hours": "regression",
    }
    assert list(job.inputs) == ["table"]
    assert job.data.stratify == "severity"
    assert drafted.left_out["note"] == "excluded"


def test_targets_that_are_missing(tmp_path: Path) -> None:
    rows = make_rows()
    for row in rows[::4]:
        row["severity"] = None
    job = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["severity"]).job
    assert job.data.max_bad_rows == 0.27


def test_files_of_other_splits_are_used_if_they_have_the_target(tmp_path: Path) -> None:
    train = tiny_jobs.write_rows(tmp_path / "train.jsonl", make_rows())
    tiny_jobs.write_rows(tmp_path / "val.jsonl", [{**row, "hours": None} for row in make_rows(20)])
    unlabeled = [{name: value for name, value in row.items() if name != "severity"} for row in make_rows(20)]
    tiny_jobs.write_rows(tmp_path / "test.jsonl", unlabeled)
    drafted = draft_job(str(train), ["severity"])
    assert drafted.job.data.validation == str(tmp_path / "val.jsonl")
    assert drafted.job.data.fractions == {"test": 0.2}
    assert "have no `severity`" in drafted.warnings[0]
    assert not drafted.job.inputs["table"].optional


def test_media_are_measured(tmp_path: Path) -> None:
    tiny_jobs.make_rows(tmp_path, 48, audio=True)
    job = draft_job(str(tmp_path / "train.jsonl"), ["label"], exclude=["brightness"]).job
    image, audio = job.inputs["image"], job.inputs["audio"]
    assert (image.type, image.size, image.optional) == ("image", 8, True)
    assert (audio.type, audio.sample_rate, audio.max_seconds, audio.optional) == ("audio", 8000, 1, True)


def test_a_folder_per_class(tmp_path: Path) -> None:
    for colour in tiny_jobs.COLOURS:
        (tmp_path / colour).mkdir()
        for number in range(8):
            tiny_jobs.write_image(tmp_path / colour / f"{number}.png", colour)
    drafted = draft_job(str(tmp_path), ["label"])
    assert list(drafted.job.inputs) == ["image"]
    assert drafted.job.tasks["label"].type == "classification"
    assert "file_name" in drafted.left_out


def test_missing_files_are_named(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.png", "size": number % 7, "label": number % 2} for number in range(40)]
    drafted = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["label"])
    assert "0.png: no such file" in drafted.left_out["image"]


def test_tags_need_an_encoder_of_every_word(tmp_path: Path) -> None:
    rows = [{"words": ["Bob", "ran", str(number)], "tags": ["B-name", "O", "O"]} for number in range(20)]
    rows += [{"words": ["we", "met", "Ann"], "tags": ["O", "O", "B-name"]} for number in range(20)]
    job = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["tags"]).job
    assert job.tasks["tags"].input == "words"
    assert job.inputs["words"].encoder.outputs_tokens


def test_retrieval_of_texts_by_images(tmp_path: Path) -> None:
    rows = [
        {"image": tiny_jobs.write_image(tmp_path / f"{n}.png").name, "caption": f"a red square of size {n}"}
        for n in range(30)
    ]
    job = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["caption"]).job
    assert job.tasks["caption_retrieval"].inputs == ("image", "caption")


def test_many_texts_become_one_input(tmp_path: Path) -> None:
    rows = [
        {
            **{f"text {place}": f"{TEXTS[(number + place) % 3]} {number} {place}" for place in range(7)},
            "label": number % 2,
        }
        for number in range(60)
    ]
    job = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["label"]).job
    assert list(job.inputs) == ["texts"]
    assert job.inputs["texts"].template.startswith("text 0: {text 0}\ntext 1: {text 1}")


def test_mappings_and_series(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {
            "state": {"lamp": rng.choice(["on", "off"]), "level": rng.random()},
            "motion": [[step + rng.random(), -step] for step in range(12)],
            "label": number % 2,
        }
        for number in range(40)
    ]
    job = draft_job(str(tiny_jobs.write_rows(tmp_path / "rows.jsonl", rows)), ["label"]).job
    state, motion = job.inputs["state"], job.inputs["motion"]
    assert (state.type, state.column, list(state.columns)) == ("tabular", "state", ["lamp", "level"])
    assert (motion.channels, motion.layout, motion.max_steps) == (2, "channels_last", 12)


def test_rows_in_memory() -> None:
    drafted = draft_job(make_rows(), ["severity"])
    assert drafted.job.name == "table-severity"
    with pytest.raises(SpecError, match="rows in memory cannot be written to YAML"):
        drafted.to_yaml()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"targets": ["severty"]}, "target `severty`: no such column; did you mean severity"),
        ({"targets": []}, "no target given; pass --target COLUMN, one of: row_id, note"),
        ({"targets": ["hours", "hours"]}, "target `hours` is given twice"),
        (
            {"targets": ["hours"], "exclude": ["nota"]},
            "excluded column `nota`: no such column; did you mean note",
        ),
        ({"targets": ["hours"], "exclude": ["hours"]}, "`hours` is a target and excluded"),
        ({"targets": ["hours"], "tasks": {"note": "ordinal"}}, "task of `note`: not a target"),
    ],
)
def test_invalid_columns(options: dict[str, Any], problem: str, file: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        draft_job(str(file), **options)


@pytest.mark.parametrize("name", ["rows.xyz", "nothing.csv"])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=name):
        draft_job(str(tmp_path / name), ["a"])


def test_names_of_inputs_are_valid_and_distinct(tmp_path: Path) -> None:
    names = ["Text Ä", "text", "Text", "1st text", "table"]
    rows = [{**{name: f"{TEXTS[n % 3]} {n} {name}" for name in names}, "label": n % 2} for n in range(40)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    job = draft_job(str(path), ["label"]).job
    assert {options.column: name for name, options in job.inputs.items()} == {
        "Text Ä": "text",
        "text": "text_2",
        "Text": "Text",
        "1st text": "_1st_text",
        "table": "table",
    }


@pytest.mark.parametrize("form", ["struct", "uri", "list"])
def test_images_inside_rows(form: str, tmp_path: Path) -> None:
    content = tiny_jobs.write_image(tmp_path / "a.png").read_bytes()
    image: Any = {"bytes": content, "path": None}
    if form == "uri":
        image = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    rows = [{"image": [image] * (1 + n % 3) if form == "list" else image, "label": n % 2} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    options = draft_job(str(tmp_path / "rows.parquet"), ["label"]).job.inputs["image"]
    assert (options.type, options.size, options.max_items) == ("image", 8, 3 if form == "list" else 1)

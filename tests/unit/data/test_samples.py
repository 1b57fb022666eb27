"""Preprocessing of rows and requests."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
from pydantic import TypeAdapter
from reading import read_all

from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.spec.inputs import TimeseriesInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def job(folder: Path) -> Any:
    classes = ["blue", "green", "high", "low", "red", "unknown"]
    return tiny_jobs.tiny_job(folder, audio=True, **{"tasks.answer.classes": classes})


@pytest.fixture(scope="module")
def rows(folder: Path, job: Any) -> list[Row]:
    return read_all(str(folder / "train.jsonl"))[0]


@pytest.fixture(scope="module")
def preprocessor(job: Any) -> Preprocessor:
    return Preprocessor(job.inputs, job.tasks)


def assert_equal(first: Sample, second: Sample) -> None:
    assert first.keys == second.keys
    assert first.features.keys() == second.features.keys()
    for name, features in first.features.items():
        for mine, theirs in zip(features, second.features[name], strict=True):
            for key, array in mine.items():
                np.testing.assert_array_equal(array, theirs[key])


def test_rows_and_requests_have_the_same_features(
    folder: Path, rows: list[Row], preprocessor: Preprocessor
) -> None:
    for row in rows:
        files = {
            name: (folder / row.values[name]).read_bytes()
            for name in ("image", "audio")
            if name in row.values
        }
        request = preprocessor.from_values({**files, "text": row.values["text"]})
        assert_equal(preprocessor.from_row(row), request)
        assert preprocessor.from_row(row).targets.keys() == {"answer"}
        assert request.targets == {}


def test_an_input_that_is_absent_or_null_has_no_entry(preprocessor: Preprocessor) -> None:
    for values in ({}, {"image": None}, {"image": math.nan, "audio": None}):
        row = Row({"text": "which?", "label": "red", **values}, "rows.jsonl", 1)
        assert list(preprocessor.from_row(row).features) == ["text"]
        assert_equal(preprocessor.from_row(row), preprocessor.from_values({"text": "which?", **values}))


def test_a_table_may_hold_the_bytes_themselves(
    folder: Path, rows: list[Row], preprocessor: Preprocessor
) -> None:
    plain = preprocessor.from_row(rows[0])
    name = rows[0].values["image"]
    content = (folder / name).read_bytes()
    for value in (content, {"bytes": content, "path": None}, {"bytes": None, "path": name}):
        assert_equal(preprocessor.from_row(Row({**rows[0].values, "image": value}, rows[0].file, 1)), plain)
    empty = Row({**rows[0].values, "image": {"bytes": b"", "path": None}}, rows[0].file, 1)
    with pytest.raises(InvalidInputError, match="the image file is empty"):
        preprocessor.from_row(empty)
    nothing = Row({**rows[0].values, "image": {"bytes": None, "path": None}}, rows[0].file, 1)
    assert "image" not in preprocessor.from_row(nothing).features


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"text": None}, "text: missing, and this input is required"),
        ({"text": 5}, "text: expected a text, got int"),
        ({"text": {"a": [1]}}, "text: expected a text, got dict"),
        ({"image": "absent.png"}, "image: absent.png: no such file"),
        ({"image": "."}, "image: .: a folder, not a file"),
        ({"image": ""}, "image: the path is empty; write null for an absent input"),
        ({"image": "a\0b"}, "image: .*: cannot be read: ValueError"),
        ({"image": ["a.png"]}, "image: expected the bytes of an image file, or its path in a row, got list"),
        ({"image": b"text"}, "image: not a readable image"),
        ({"audio": 3.5}, "audio: expected the bytes of an audio file, or its path in a row, got float"),
        (
            {"audio": "gopher://host/a.wav"},
            "audio: gopher://host/a.wav: cannot be read: ValueError: Protocol",
        ),
        (
            {"label": "purple"},
            r"answer \(column label\): label 'purple' is not one of the 6 classes: 'blue', 'g",
        ),
        ({"label": None}, r"answer \(column label\): the label is missing"),
    ],
)
def test_invalid_rows(values: dict[str, Any], problem: str, folder: Path, preprocessor: Preprocessor) -> None:
    row = Row({"text": "which?", "label": "red", **values}, str(folder / "rows.jsonl"), 1)
    for read in (preprocessor.fingerprint, preprocessor.from_row):
        with pytest.raises(InvalidInputError, match=problem):
            read(row)


def test_invalid_requests(preprocessor: Preprocessor) -> None:
    with pytest.raises(
        InvalidInputError, match="clip: not an input of this model; it has: image, text, audio"
    ):
        preprocessor.from_values({"text": "a", "clip": b""})
    with pytest.raises(MissingInputError, match="text: missing"):
        preprocessor.from_values({"image": b""})


def test_rows_and_requests_without_any_input_are_invalid(job: Any) -> None:
    preprocessor = Preprocessor({"image": job.inputs["image"]}, job.tasks)
    for read in (preprocessor.fingerprint, preprocessor.from_row):
        with pytest.raises(MissingInputError, match="no input given; this model reads: image"):
            read(Row({"label": "red"}, "rows.jsonl", 1))
    with pytest.raises(MissingInputError, match="no input given"):
        preprocessor.from_values({})


def test_the_digest_depends_on_contents_and_targets_alone(folder: Path, preprocessor: Preprocessor) -> None:
    for name in ("a.png", "copy.png"):
        tiny_jobs.write_image(folder / name, "red")
    tiny_jobs.write_image(folder / "other.png", "green")

    def digest(**values: Any) -> bytes:
        plain = {"image": "a.png", "text": "which?", "label": "red"}
        return preprocessor.fingerprint(Row({**plain, **values}, str(folder / "rows.jsonl"), 1)).digest

    assert digest() == digest(image="copy.png", note="unread", audio=None)
    others = [{"image": "other.png"}, {"image": None}, {"text": "what?"}, {"label": "blue"}]
    assert len({digest(), *(digest(**values) for values in others)}) == 5


def test_long_arrays_have_a_key_each() -> None:
    """Items of one key are encoded once, and NumPy abbreviates the text of a long array."""
    series = TypeAdapter(TimeseriesInput).validate_python(
        {
            "type": "timeseries",
            "column": "s",
            "channels": 2,
            "center": [0, 0],
            "scale": [1, 1],
            "max_steps": 5000,
        }
    )
    reader = Preprocessor({"s": series})
    one = np.zeros(5000)
    other = one.copy()
    other[2500] = 1
    forms: list[Any] = [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: {"x": a, "y": b},
        lambda a, b: np.stack([a, b]),
    ]
    for form in forms:
        first, second = (reader.from_values({"s": form(one, array)}) for array in (one, other))
        assert first.keys != second.keys
        assert second.features["s"][0]["values"][1, 2500] == 1


def test_the_size_of_a_sample(rows: list[Row], preprocessor: Preprocessor) -> None:
    sample = preprocessor.from_row(rows[0])
    features = 8 * 8 * 3 * 4 + 40 * 11 * 4 + 2 * 8 * len(rows[0].values["text"])
    assert sample.nbytes == features + 500 * (1 + 4)


def test_the_length_of_a_row(rows: list[Row], preprocessor: Preprocessor) -> None:
    row = next(row for row in rows if "image" in row.values and "audio" in row.values)
    assert preprocessor.fingerprint(row, with_length=True).length == len(row.values["text"])
    assert preprocessor.fingerprint(row).length == 0
    assert preprocessor.fingerprint(row).digest == preprocessor.fingerprint(row, with_length=True).digest

"""Texts of several columns in rows, requests and data frames."""

from typing import Any

import pandas as pd
import pytest

from rayfuse.data.row_adapter import RowAdapter, describe_inputs
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import MissingInputError
from rayfuse.spec.job import Job

JOB = Job(
    name="reviews",
    data={"train": "/rows.csv"},
    inputs={"review": {"type": "text", "template": "{title}\n{price} EUR"}},
    tasks={"stars": {"type": "classification", "classes": [1, 2]}},
)
TEXT = b"Good\n3 EUR"


def text_of(sample: Any) -> bytes:
    return bytes(sample.features["review"][0]["input_ids"].astype("uint8") - 1)


def test_rows_and_requests_have_the_same_text() -> None:
    preprocessor = Preprocessor(JOB.inputs, JOB.tasks)
    row = {"title": "Good", "price": "3", "stars": 1}
    assert text_of(preprocessor.from_row(Row(row, "rows.csv", 1))) == TEXT
    for value in ({"title": "Good", "price": 3.0}, "Good\n3 EUR"):
        assert text_of(preprocessor.from_values({"review": value})) == TEXT


def test_frames_have_the_columns_or_the_text() -> None:
    adapter = RowAdapter(describe_inputs(JOB.inputs))
    preprocessor = Preprocessor(JOB.inputs)
    [row] = adapter.rows_of(pd.DataFrame({"title": ["Good"], "price": [3.0], "stars": [1]}))
    for values in (row, {"review": {"title": "Good", "price": 3}}, {"review": TEXT.decode()}):
        assert text_of(preprocessor.from_values(adapter.read(values))) == TEXT
    assert adapter.read({"stars": 1}) == {}


def test_a_text_without_columns_is_missing() -> None:
    preprocessor = Preprocessor(JOB.inputs)
    with pytest.raises(MissingInputError, match="missing, and this input is required"):
        preprocessor.from_row(Row({"title": None}, "rows.csv", 1))
    with pytest.raises(
        MissingInputError, match="no value in the columns title, price, and this input is required"
    ):
        preprocessor.from_values({"review": {"title": None}})

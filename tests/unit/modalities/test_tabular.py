"""Columns become numbers and codes; scales and categories come from training rows."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.modalities.tabular import TabularModality
from rayfuse.spec.encoders import CustomEncoderConfig
from rayfuse.spec.inputs import TabularInput
from rayfuse.spec.table_columns import CategoryColumn, NumberColumn

ROWS = [{"age": n, "city": ["Rome", "Oslo", "Rome"][n % 3], "note": None} for n in range(61)]


def options(columns: Any, **settings: Any) -> TabularInput:
    encoder = CustomEncoderConfig(type="my.module:Encoder")
    return TabularInput(type="tabular", columns=columns, encoder=encoder, **settings)


def fitted(columns: Any = ("age", "city"), rows: list[Any] = ROWS, **settings: Any) -> TabularModality:
    columns = list(columns) if isinstance(columns, tuple) else columns
    return TabularModality(TabularModality.fit(options(columns, **settings), rows))


def test_kinds_scales_and_vocabularies_are_fitted() -> None:
    found = fitted().options
    assert found.columns == {
        "age": NumberColumn(center=30, scale=30 / 1.349),
        "city": CategoryColumn(vocabulary=["Rome", "Oslo"], inferred=True),
    }
    assert found.numeric_columns == ["age"]
    assert found.category_vocabularies == {"city": ["Rome", "Oslo"]}
    assert TabularModality.fit(found, []) is found
    assert TabularInput.model_validate_json(found.model_dump_json()) == found


def test_features() -> None:
    modality = fitted()
    rows = [{"age": 30, "city": "Oslo"}, {"age": None}, {"age": math.nan, "city": "Paris"}]
    batch = modality.collate([modality.process(modality.decode(row)) for row in [rows[0], rows[2]]])
    assert batch["numbers"].tolist() == [[0], [0]]
    assert batch["missing"].tolist() == [[0], [1]]
    assert batch["categories"].tolist() == [[3], [0]]
    with pytest.raises(MissingInputError, match=r"none of the columns has a value \(age, city\)"):
        modality.decode(rows[1])
    blank = modality.dummy_features()
    assert blank["missing"].tolist() == blank["categories"].tolist() == [1]
    assert {name: array.dtype for name, array in blank.items()} == {
        "numbers": np.float32,
        "missing": np.float32,
        "categories": np.int64,
    }


def test_outliers_are_clipped() -> None:
    modality = fitted()
    assert modality.process(modality.decode({"age": -1e300}))["numbers"].tolist() == [-100]


@pytest.mark.parametrize(
    ("values", "center", "scale"),
    [
        ([3, 3, 3], 3, 1),
        ([0] * 97 + [1, 1, 1], 0, 0.17),
        ([1, 2, 3, 4, 1e12], 3, 2 / 1.349),
        ([True, False], 0.5, 0.37),
    ],
)
def test_robust_scales(values: list[Any], center: float, scale: float) -> None:
    column = fitted({"a": "number"}, [{"a": value} for value in values]).options.columns["a"]
    assert isinstance(column, NumberColumn)
    assert (column.center, column.scale) == (pytest.approx(center), pytest.approx(scale, abs=0.01))


def test_equal_numbers_are_one_category() -> None:
    rows = [{"a": value} for value in (3, 3.0, "3", "3.0", Decimal(0), "007", 7, True, "True", "2.50", 2.5)]
    modality = fitted({"a": "category"}, rows, min_frequency=1)
    assert modality.options.category_vocabularies == {"a": ["3", "2.5", "True", "0", "007", "7"]}
    values = (3.0, "3", " 3 ", "007", 7, "x")
    codes = [modality.process(modality.decode({"a": v}))["categories"][0] for v in values]
    assert codes == [2, 2, 2, 6, 7, 0]


@pytest.mark.parametrize(
    ("known", "value"), [("true", True), ("false", "FALSE"), ("3.0", 3), ("caf\u00e9", "cafe\u0301 ")]
)
def test_a_given_vocabulary_names_categories_as_rows_do(known: str, value: Any) -> None:
    modality = fitted({"a": {"type": "category", "vocabulary": ["x", known]}}, [])
    assert modality.process(modality.decode({"a": value}))["categories"].tolist() == [3]


def test_a_blank_text_is_missing_as_in_csv() -> None:
    modality = fitted(
        {"a": "category", "b": "number"}, [{"a": "x", "b": 1}, {"a": " ", "b": 2}], min_frequency=1
    )
    assert modality.options.category_vocabularies == {"a": ["x"]}
    features = modality.process(modality.decode({"a": "x", "b": ""}))
    assert (features["categories"].tolist(), features["missing"].tolist()) == ([2], [1])
    assert modality.process(modality.decode({"a": "", "b": 1}))["categories"].tolist() == [1]


def test_a_column_of_numbers_with_some_texts_is_reported() -> None:
    rows = [{"a": number} for number in range(10)] + [{"a": "1,234"}, {"a": "1,234"}, {"a": "-"}]
    modality = fitted({"a": "inferred"}, rows, min_frequency=1)
    summary = modality.summary()
    for row in rows:
        summary.update(row)
    [line] = summary.lines()
    assert line.startswith(
        "WARNING column a is a category, although 12 of its values look like numbers: '1,234' (2), '-' (1) are texts; "
    )


@pytest.mark.parametrize(
    ("kind", "values", "reported"),
    [
        ("inferred", ["1,234", "2,345", 7], True),
        ("inferred", ["$5", "$7.50"], True),
        ("inferred", ["12.5", "13.5"], True),
        ("inferred", ["x", "y", 1], False),
        ("inferred", ["007", "2024-01-05"], False),
        ("category", ["1,234", "2,345", 7], False),
    ],
)
def test_categories_that_look_like_numbers_are_reported(kind: str, values: list[Any], reported: bool) -> None:
    summary = fitted({"a": kind}, [{"a": value} for value in values], min_frequency=1).summary()
    for value in values:
        summary.update({"a": value})
    assert [line.startswith("WARNING column a is a category") for line in summary.lines()] == [
        True
    ] * reported


def test_rare_categories_are_unknown_and_reported() -> None:
    rows = [{"a": name} for name in ["x"] * 5 + ["y"] * 2 + ["z", "w", None]]
    modality = fitted({"a": "category"}, rows, min_frequency=2)
    assert modality.options.category_vocabularies == {"a": ["x", "y"]}
    summary = modality.summary()
    for row in [*rows, "no mapping"]:
        summary.update(row)
    assert list(summary.lines()) == [
        "column a is missing in 1 of 10 rows",
        "column a: 2 of 9 values are unknown: 'z' (1), 'w' (1)",
    ]


def test_given_statistics_are_not_fitted() -> None:
    columns = {"age": {"type": "number", "center": 0}, "city": {"type": "category", "vocabulary": ["Bern"]}}
    found = fitted(columns).options.columns
    assert found["age"] == NumberColumn(center=0, scale=30 / 1.349)
    assert found["city"] == CategoryColumn(vocabulary=["Bern"])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["note"], "column `note`: no training row has a value; correct the name or leave it out"),
        (["nothing"], "column `nothing`: no training row has a value"),
        (
            {"city": "number"},
            "column `city`: no training row has a number; the first value is 'Rome'; use `city: category`",
        ),
    ],
)
def test_columns_without_values_are_rejected(columns: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        fitted(columns)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1, 2], r"no training row has a mapping {column: value}; the first value is \[1, 2\]"),
        ({"a": ["x"]}, r"column `a`: no training row has a text or number; the first value is \['x'\]"),
    ],
)
def test_values_without_categories_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        fitted({"a": "category"}, [value])


def test_columns_of_rare_categories_are_rejected() -> None:
    with pytest.raises(
        DataError,
        match="column `a`: none of its 3 categories occurs in 2 training rows; lower `min_frequency`",
    ):
        fitted({"a": "category"}, [{"a": name} for name in "xyz"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"age": "39"}, "column age: expected a number, got '39'"),
        ({"age": [1]}, r"column age: expected a number, got \[1\]"),
        ({"age": math.inf}, "column age: the number is infinite or too large"),
        ({"age": 10**400}, "column age: the number is infinite or too large"),
        ({"city": ["Rome"]}, "column city: expected a text or a number, got list"),
        ({"citi": "Rome"}, "'citi': not a column of this input; did you mean city?"),
        ([1], "expected a mapping {column: value}, got list"),
        (b"{}", "expected a mapping {column: value}, got bytes"),
    ],
)
def test_invalid_rows_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        fitted().decode(value)

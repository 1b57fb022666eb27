"""Kinds of columns, from their values and names."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from rayfuse.schema_inference.column import Column, SeriesLayout

Infer = Callable[..., Column]
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "into",
    "the",
    "deep",
    "dark",
    "forest",
]


def sentences(count: int) -> list[str]:
    return [" ".join(WORDS[i % 5 : i % 5 + 6]) + f" {i}" for i in range(count)]


@pytest.mark.parametrize("message", [{"role": "user", "content": "hi"}, {"from": "human", "value": "hi"}])
def test_dialogues_are_left_out_with_the_input_that_reads_them(message: Any, infer: Infer) -> None:
    column = infer([[message], [message, message]] * 10)
    assert column.kind == "unusable"
    assert "write an input of type chat" in column.note


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 1.5, None, 2.5] * 10, "number"),
        (["1.5", " 2", "3e2"] * 10, "number"),
        ([3, 1, 2] * 10, "number"),
        ([True, False] * 10, "boolean"),
        (["yes", "No"] * 10, "boolean"),
        (["Oslo", "Rome", "Lima"] * 10, "category"),
        (["007", "008"] * 10, "category"),
        (sentences(40), "text"),
        ([1, "a"] * 10, "category"),
        (["2026-01-31", "2025-12-01"] * 10, "date"),
        (["May 30, 2011", "June 1, 2012"] * 10, "date"),
        ([datetime.date(2026, 1, 31), datetime.date(2026, 2, 1)] * 5, "date"),
        ([f"user-{number}" for number in range(40)], "id"),
        (list(range(100, 140)), "id"),
        (["same"] * 10, "unusable"),
        ([None] * 10, "unusable"),
        ([None] * 99 + ["rare"], "unusable"),
        ([["a", "b"], ["c"]] * 10, "text"),
        ([[1.5, 2.5], [0.5, 1.5]] * 10, "timeseries"),
        ([[5, 7, 9], [5]] * 10, "item_sequence"),
        ([[{"id": 5, "time": 1}, {"id": 6, "time": 2}], [{"id": 5, "time": 3}]] * 10, "item_sequence"),
        ([[{"box": [1, 2]}]] * 10 + [[{"box": [3]}]], "unusable"),
        ([{"on": True, "level": 3}, {"on": False, "level": 4}] * 5, "tabular"),
        ([{"x": [1, 2], "y": [3, 4]}, {"x": [0], "y": [1]}] * 5, "timeseries"),
        ([{"a": {"b": 1}}, {"a": {"b": 2}}] * 5, "unusable"),
    ],
)
def test_kinds_by_values(values: list[Any], kind: str, infer: Infer) -> None:
    assert infer(values).kind == kind


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("customer_id", [number % 50 for number in range(200)], "id"),
        ("Clothing ID", [str(number % 50) for number in range(200)], "id"),
        ("store_id", [1, 2, 3] * 20, "category"),
        ("zip_code", [number * 7 % 90 for number in range(200)], "category"),
        ("price", [number * 7 % 190 for number in range(200)], "number"),
        ("fold", [1, 2, 3, 4] * 10, "unusable"),
        ("split", ["train", "test"] * 10, "unusable"),
        ("purchases", [["tea", "milk"], ["rice"]] * 10, "item_sequence"),
        ("history", [[5, 7], [5, 8]] * 10, "item_sequence"),
    ],
)
def test_kinds_by_names(name: str, values: list[Any], kind: str, infer: Infer) -> None:
    assert infer(values, name).kind == kind


def test_an_id_that_repeats_forms_groups(infer: Infer) -> None:
    assert infer([number % 50 for number in range(200)], "patient_id").is_group
    assert not infer(list(range(200)), "patient_id").is_group


def test_missing_values_are_counted(infer: Infer) -> None:
    column = infer(["Oslo", "Rome", "", None] * 10)
    assert (column.kind, column.missing, column.num_distinct) == ("category", 0.5, 2)


def test_a_constant_with_missing_values_tells_which_rows_have_it(infer: Infer) -> None:
    assert infer(["x", None] * 10).kind == "category"
    assert "always x" in infer(["x"] * 10).note


def test_one_number_with_marks_is_reported(infer: Infer) -> None:
    note = infer([f"{number} kg" if number == 3 else str(number % 9) for number in range(40)]).note
    assert "WARNING: numbers but for 3 kg" in note


@pytest.mark.parametrize(
    ("values", "layout"),
    [
        ([[[1, 2, 3], [4, 5, 6]], [[1, 2], [4, 5]]], SeriesLayout(2)),
        ([[[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4]]], SeriesLayout(2, steps_first=True)),
        ([[[0, 1, 2, 3], [90, 91, 92, 93]]] * 3, SeriesLayout(2)),
        ([[[0, 90], [1, 91], [2, 92], [3, 93]]] * 3, SeriesLayout(2, steps_first=True)),
    ],
)
def test_channels_and_steps_are_told_apart(values: list[Any], layout: SeriesLayout, infer: Infer) -> None:
    assert infer([*values, [[0.0] * len(row) for row in values[0]]]).layout == layout


def test_numbers_as_texts_are_categories_in_mappings(infer: Infer) -> None:
    column = infer([{"a": "1", "b": 1}, {"a": "2", "b": 2}] * 5)
    assert {key: inner.kind for key, inner in column.columns.items()} == {"a": "category", "b": "number"}


def test_rare_keys_of_mappings_are_named(infer: Infer) -> None:
    column = infer([{"a": 1, "b": 2}, {"a": 2}] * 2 + [{"a": 3}] * 8)
    assert column.kind == "unusable"
    assert "`b` in them: in 2 rows only" in column.note

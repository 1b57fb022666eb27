"""Cells of csv files: what is a number, a label, a category, and what is missing."""

from typing import Any

import pytest
from pydantic import ValidationError

from rayfuse.modalities.vocabulary import canonical_name
from rayfuse.spec.cells import (
    CellFormat,
    CellType,
    canonical_text,
    cell_parser,
    find_delimiter,
    parse_json,
    resembles_number,
)


def parse(kind: CellType, cell: str, **options: Any) -> Any:
    return cell_parser(kind, CellFormat(**options))(cell)


@pytest.mark.parametrize(
    ("cell", "label", "number", "category"),
    [
        ("3", 3, 3.0, "3"),
        (" 3 ", 3, 3.0, "3"),
        ("3.0", 3, 3.0, "3.0"),
        ("-3.", -3, -3.0, -3.0),
        ("1.50", "1.50", 1.5, "1.50"),
        ("-1e-05", "-1e-05", -1e-05, -1e-05),
        ("+1", "+1", 1.0, 1.0),
        ("007", "007", "007", "007"),
        ("01.5", "01.5", "01.5", "01.5"),
        ("1_000", "1_000", "1_000", "1_000"),
        ("1,234", "1,234", "1,234", "1,234"),
        ("0x1", "0x1", "0x1", "0x1"),
        ("\uff11\uff12", "\uff11\uff12", "\uff11\uff12", "\uff11\uff12"),
        ("9" * 20, "9" * 20, float("9" * 20), "9" * 20),
        ("inf", "inf", "inf", "inf"),
        (" a b ", "a b", "a b", "a b"),
        *((mark, None, None, None) for mark in ("", "  ", "NA", " NaN ", "null", "None", "#N/A", "n/a", "<NA>")),
        *((text, text, text, text) for text in ("none", "na", "-", "?", "missing")),
    ],
)  # fmt: skip
def test_cells(cell: str, label: Any, number: Any, category: Any) -> None:
    found = [parse("int", cell), parse("float", cell), parse("category", cell)]
    assert found == [label, number, category]
    assert list(map(type, found)) == [type(label), type(number), type(category)]


def test_texts_and_paths_are_used_as_they_are() -> None:
    assert [parse("str", cell) for cell in (" NA ", "3.0", "")] == [" NA ", "3.0", None]


@pytest.mark.parametrize(
    ("cell", "options", "number"),
    [
        ("1,234", {"thousands": ","}, 1234.0),
        ("-12,345,678.5", {"thousands": ","}, -12345678.5),
        ("234", {"thousands": ","}, 234.0),
        ("1,23", {"thousands": ","}, "1,23"),
        ("12,34,567", {"thousands": ","}, "12,34,567"),
        ("1,5", {"decimal": ","}, 1.5),
        ("1.5", {"decimal": ","}, "1.5"),
        ("1.234,5", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1 234", {"thousands": " "}, 1234.0),
        ("1\u202f234", {"thousands": "\u202f"}, 1234.0),
        ("1\u202f234\u00a0567", {"thousands": " "}, 1234567.0),
        ("1\u2019234.5", {"thousands": "'"}, 1234.5),
        ("1\u202f234", {}, "1\u202f234"),
        ("?", {"missing_values": ["?", "-"]}, None),
        ("NA", {"missing_values": ["?"]}, "NA"),
        (" - ", {"missing_values": ["-"]}, None),
        ("", {"missing_values": []}, None),
    ],
)
def test_marks_of_a_file(cell: str, options: dict[str, Any], number: Any) -> None:
    assert parse("float", cell, **options) == number


@pytest.mark.parametrize(
    ("cell", "options"),
    [(cell, {}) for cell in ("3", "3.0", "-3.", "+1", ".5", "1e5", "007", "12345678901234567", "a", "NA")]
    + [("1,234", {"thousands": ","}), ("1,5", {"decimal": ","})],
)
def test_an_inferred_category_is_the_same_once_it_is_fitted(cell: str, options: dict[str, Any]) -> None:
    inferred, category = (parse(kind, cell, **options) for kind in ("inferred", "category"))
    assert inferred == category or canonical_name(inferred) == canonical_name(category)


@pytest.mark.parametrize(
    "text", ["12", "1,234", "1.234,5", "0,5", "1\u202f234", "-1e-5", "$5.50", "€ 3", "5 %", "(1,000)"]
)
def test_numbers_with_marks_are_recognized(text: str) -> None:
    assert resembles_number(text)


@pytest.mark.parametrize("text", ["", "-", "007", "1.2.3", "12:30", "2024-01-05", "5kg", "a1", "1,23,4"])
def test_codes_and_words_are_no_numbers(text: str) -> None:
    assert not resembles_number(text)


def test_one_mark_cannot_have_two_meanings() -> None:
    with pytest.raises(ValidationError, match=r"thousands and decimal are both ','; use different marks"):
        CellFormat(decimal=",", thousands=",")


@pytest.mark.parametrize(
    ("lines", "delimiter"),
    [
        ([], ","),
        (["text\n", "one; two\n"], ","),
        (["id,tags (a;b;c)\n", "1,a\n"], ","),
        (["price;title\n", "1,50;two, three\n", "2,00;four\n"], ";"),
        (["name, first;name, last;age\n", "a;b;1\n"], ";"),
        (["a,b|c,d\n", "1,2|3,4\n"], ","),
    ],
)
def test_find_delimiter(lines: list[str], delimiter: str) -> None:
    assert find_delimiter(lines) == delimiter


def test_names_of_one_look_are_equal() -> None:
    assert {canonical_text(text) for text in ("caf\u00e9", "cafe\u0301", " caf\u00e9\u00a0")} == {"caf\u00e9"}


def test_json_cells() -> None:
    assert parse_json("[1, null]") == [1, None]
    assert parse_json("[1, nul") == "[1, nul"
    assert parse_json("") is None

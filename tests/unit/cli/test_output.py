"""What is printed: tables for people, plain JSON for programs."""

import json
from pathlib import Path

import numpy as np
import pytest

from rayfuse.cli import output
from rayfuse.spec.job import FractionSplit


def as_json(value: object, capsys: pytest.CaptureFixture[str]) -> object:
    with output.json_only():
        output.result({"value": value}, "text")
    return json.loads(capsys.readouterr().out)["value"]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float64("nan"), None),
        (float("inf"), None),
        (Path("/a/b"), "/a/b"),
        ({1: (1, 2)}, {"1": [1, 2]}),
        (FractionSplit(fraction=0.5), {"fraction": 0.5}),
        ("größer", "größer"),
    ],
)
def test_json_holds_plain_values(value: object, plain: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(value, capsys) == plain


def test_what_has_no_form_in_json_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="of type object has no form in JSON"):
        as_json(object(), capsys)


def test_people_get_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("first")
    output.result({"value": 1}, "done")
    output.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == "first\ndone\n"
    assert captured.err == "warning: careful\n"
    assert not output.is_json()


def test_standard_output_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    with output.json_only():
        assert output.is_json()
        output.say("aside")
    output.say("again")
    captured = capsys.readouterr()
    assert captured.out == "again\n"
    assert captured.err == "aside\n"


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    text = output.table(["name", "rows", "note"], [["a", 5, None], ["longer", 1000, "x"]])
    assert text.splitlines() == [
        "name    rows  note",
        "a          5  -",
        "longer  1000  x",
    ]
    assert output.table(["name"], []) == "name"

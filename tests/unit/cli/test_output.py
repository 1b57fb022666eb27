"""Results as text and as JSON, and log records on standard output and standard error."""

import json
from pathlib import Path

import numpy as np
import pytest

from rayfuse.cli import output
from rayfuse.spec.job import FractionSplit


def as_json(value: object, capsys: pytest.CaptureFixture[str]) -> object:
    with output.reserve_stdout_for_json():
        output.print_result({"value": value}, "text")
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


def test_values_without_a_json_type_are_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="of type object is not JSON serializable"):
        as_json(object(), capsys)


def test_results_are_text_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo("first")
    output.print_result({"value": 1}, "done")
    assert capsys.readouterr() == ("first\ndone\n", "")
    assert not output.is_json()


def test_standard_output_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    with output.reserve_stdout_for_json():
        assert output.is_json()
        output.echo("aside")
    output.echo("again")
    captured = capsys.readouterr()
    assert captured.out == "again\n"
    assert captured.err == "aside\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo("a\x1b[2J")
    output.echo_log("\x1b[36m(worker)\x1b[0m 1%\r2%\x1b[2J")
    output.report_error("SpecError", "b\x1b[2J", 2)
    captured = capsys.readouterr()
    assert captured.out == "a\\x1b[2J\n(worker) 1%\n2%\\x1b[2J\n"
    assert captured.err == "error: b\\x1b[2J\n"

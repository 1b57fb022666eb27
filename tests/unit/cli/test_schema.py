"""`rayfuse schema`."""

import json

import pytest

from rayfuse.cli import main


def test_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "job      Train one model" in capsys.readouterr().out
    assert main(["schema", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["kinds"]) >= {"job", "service"}


def test_the_text_is_the_schema_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "job"]) == 0
    text = capsys.readouterr().out
    assert main(["schema", "job", "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(text) == json.loads(line)
    assert json.loads(text)["title"] == "Rayfuse job"


def test_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "jbo"]) == 2
    assert capsys.readouterr().err == "error: schema jbo: not a kind of spec; did you mean job?\n"

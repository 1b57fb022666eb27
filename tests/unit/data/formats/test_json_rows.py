"""Rows of JSON files."""

import json
from pathlib import Path
from typing import Any

import pytest
from reading import read_all

from rayfuse.errors import DataError

ROWS = [{"text": 'ein "Wort" [ü] }', "n": -1.5e3, "list": [1, {"a": None}]}, {"text": "", "n": 2}]


def read(path: Path, content: str | bytes) -> tuple[list[dict[str, Any]], list[str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows, bad = read_all(str(path))
    return [row.values for row in rows], [str(row) for row in bad]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        "\ufeff \n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n",
        json.dumps({"version": "1.1", "count": 2, "data": ROWS}),
        json.dumps({"rows": ROWS}, indent=1),
        "".join(json.dumps(row) + "\n" for row in ROWS),
    ],
)
def test_lists_and_lines(content: str, tmp_path: Path) -> None:
    assert read(tmp_path / "rows.json", content) == (ROWS, [])


@pytest.mark.parametrize("content", ["[]", '{"data": []}'])
def test_empty_lists(content: str, tmp_path: Path) -> None:
    assert read(tmp_path / "rows.json", content) == ([], [])


def test_a_list_of_several_blocks_with_long_values(tmp_path: Path) -> None:
    rows = [{"n": n, "text": "ü\\" * (n % 700), "number": 10**n % 10**40} for n in range(3000)]
    rows[1500]["text"] = "x" * 300_000
    assert read(tmp_path / "rows.json", json.dumps(rows, ensure_ascii=False)) == (rows, [])


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_deeply_nested_row_is_one_invalid_row(name: str, tmp_path: Path) -> None:
    lines = [f'{{"n": {"[" * depth}1{"]" * depth}}}' for depth in (1, 63, 64, 900)]
    content = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
    rows, bad = read(tmp_path / name, content)
    assert len(rows) == 2
    assert [reason.rpartition(":")[2] for reason in bad] == [
        " a value is nested more than 64 levels deep; store it flat, or as a text"
    ] * 2


def test_values_that_are_not_objects(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "rows.json", '[{"a": 1}, 12, [3], null, {"a": 2}]')
    assert rows == [{"a": 1}, {"a": 2}]
    assert [reason.rpartition("rows.json:")[2] for reason in bad] == [
        f"{number}: expected a JSON object, not {kind}; write a list of objects"
        for number, kind in ((2, "int"), (3, "list"), (4, "NoneType"))
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        ('[{"a": 1}', "not JSON: the file is incomplete"),
        ('[{"a": 1}, {"b', "not JSON: the file is incomplete"),
        ('[{"a": 1} {"b": 2}]', 'expected `,` or `]` after a value near `{"b": 2}]`'),
        ('[{"a": nope, "b": "a long text after it"}]', "not JSON: Expecting value near"),
        ('[{"a": 1}] [{"a": 2}]', "content after the list of rows"),
        (
            '{"data": [{"a": 1}], "label": 2}\n{"data": [{"a": 1}], "label": 2}',
            "content after the list of rows",
        ),
        (b'[{"a": "\xff"}]', "not UTF-8; save the file as UTF-8"),
        ("[" + "[" * 100_000, "not JSON"),
    ],
)
def test_invalid_files(content: str | bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path / "rows.json", content)
    assert problem in str(raised.value)

"""Rows of valid and invalid files, folders and globs."""

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from reading import read_all

from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat, cell_parser

ROWS = [{"text": "one", "label": 1}, {"text": "two", "label": 2}]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LABEL, NUMBER = cell_parser("int", CellFormat()), cell_parser("float", CellFormat())


def values(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.values for row in rows]


def test_jsonl(tmp_path: Path) -> None:
    url = write(tmp_path / "rows.jsonl", "\ufeff" + jsonl(ROWS[:1]) + "\r\n\n" + jsonl(ROWS[1:]).rstrip("\n"))
    rows, bad = read_all(url)
    assert values(rows) == ROWS
    assert [row.origin for row in rows] == [f"{url}:1", f"{url}:4"]
    assert not bad


def test_csv_cells_are_text_without_a_parser(tmp_path: Path) -> None:
    url = write(
        tmp_path / "rows.csv", 'text,label,price\n12,3,1.50\n"a ""b"",\nc",x,\n\n"007",007,-1e-05\n,,nan\n'
    )
    rows, bad = read_all(url, {"label": LABEL, "price": NUMBER})
    assert values(rows) == [
        {"text": "12", "label": 3, "price": 1.5},
        {"text": 'a "b",\nc', "label": "x", "price": None},
        {"text": "007", "label": "007", "price": -1e-05},
        {"text": None, "label": None, "price": None},
    ]
    assert [row.line for row in rows] == [2, 3, 6, 7]
    assert not bad


def test_a_csv_cell_has_the_same_type_in_every_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "label\n1\n2\n")
    write(tmp_path / "b.csv", "label\n1\nunknown\n")
    rows, _ = read_all(str(tmp_path), {"label": LABEL})
    assert [row.values["label"] for row in rows] == [1, 2, 1, "unknown"]


def test_ragged_csv_rows_are_invalid(tmp_path: Path) -> None:
    url = write(tmp_path / "rows.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    rows, bad = read_all(url)
    assert values(rows) == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    assert [str(row) for row in bad] == [
        f"{url}:3: 1 cells, the header has 2",
        f"{url}:4: 3 cells, the header has 2",
    ]


def test_an_unclosed_quote_invalidates_every_line_it_spans(tmp_path: Path) -> None:
    url = write(tmp_path / "rows.csv", 'a,b\n1,2\n"3,4\n5,6\n7",8,0\n9,"x"y\n10,11\n"12,13\n14,15\n')
    rows, bad = read_all(url)
    assert values(rows) == [{"a": "1", "b": "2"}, {"a": "10", "b": "11"}]
    assert [row.origin.rsplit(":", 1)[1] for row in bad] == ["3", "4", "5", "6", "8", "9"]
    assert "header has 2" in bad[0].reason
    assert "not CSV" in bad[-1].reason


def test_csv_columns_of_the_same_name_are_rejected(tmp_path: Path) -> None:
    url = write(tmp_path / "rows.csv", "a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match=r"rows\.csv:1: 2 columns have the name `a`; rename"):
        read_all(url)


def test_parquet_with_nulls_bytes_and_nested_values(tmp_path: Path) -> None:
    content = [
        {
            "image": {"bytes": b"\x89PNG", "path": None},
            "text": "a",
            "n": 2**60,
            "d": Decimal("1.50"),
            "t": [1],
        },
        {"image": None, "text": None, "n": None, "d": None, "t": []},
    ]
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "rows.parquet")
    rows, bad = read_all(str(tmp_path / "rows.parquet"))
    assert values(rows) == content
    assert [row.line for row in rows] == [1, 2]
    assert not bad


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow", "json"])
def test_compressed_files(kind: str, suffix: str, tmp_path: Path) -> None:
    content = (
        b"text\none\n" if kind == "csv" else b'[{"text": "one"}]' if kind == "json" else b'{"text": "one"}\n'
    )
    table = pa.Table.from_pylist([{"text": "one"}])
    if kind == "parquet":
        pq.write_table(table, tmp_path / "plain")
        content = (tmp_path / "plain").read_bytes()
    if kind == "arrow":
        feather.write_feather(table, tmp_path / "plain")
        content = (tmp_path / "plain").read_bytes()
    url = write(tmp_path / f"rows.{kind}.{suffix}", COMPRESS[suffix](content))
    assert values(read_all(url)[0]) == [{"text": "one"}]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_incomplete_compressed_file(suffix: str, tmp_path: Path) -> None:
    content = COMPRESS[suffix](jsonl([{"n": number * 7919 % 10007} for number in range(20_000)]).encode())
    url = write(tmp_path / f"rows.jsonl.{suffix}", content[: len(content) // 2])
    with pytest.raises(DataError, match=f"incomplete or corrupt {suffix} file"):
        read_all(url)


def test_several_files_in_their_order(tmp_path: Path) -> None:
    first = write(tmp_path / "b.jsonl", jsonl(ROWS[1:]))
    write(tmp_path / "a.csv", "text,label\none,x\n")
    found = [row for file in list_data_files((first, str(tmp_path / "*.csv"))) for row in read_rows(file)]
    assert [row.values for row in found if isinstance(row, Row)] == [ROWS[1], {"text": "one", "label": "x"}]
    with pytest.raises(
        DataError, match=r"b\.jsonl: named 2 times in the list of data files; remove all but one"
    ):
        list_data_files((first, str(tmp_path / "*")))


def test_json_files_of_a_folder_are_rows_if_it_has_no_others(tmp_path: Path) -> None:
    write(tmp_path / "a.json", json.dumps(ROWS))
    write(tmp_path / ".hidden.csv", "text\nno\n")
    assert values(read_all(str(tmp_path))[0]) == ROWS
    write(tmp_path / "b.tsv", "text\none\n")
    assert values(read_all(str(tmp_path))[0]) == [{"text": "one"}]


def test_globs_and_folders_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", jsonl(ROWS[1:]))
    write(tmp_path / "a.jsonl", jsonl(ROWS[:1]))
    write(tmp_path / "c.csv", "text\nthree\n")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / "notes.txt", "no rows")
    assert values(read_all(str(tmp_path / "*.jsonl"))[0]) == ROWS
    assert values(read_all(str(tmp_path))[0]) == [*ROWS, {"text": "three"}]


def test_a_folder_with_the_name_of_a_file_and_a_file_with_the_name_of_a_glob(tmp_path: Path) -> None:
    write(tmp_path / "spark.jsonl" / "part-0.jsonl", jsonl(ROWS))
    assert values(read_all(str(tmp_path / "spark.jsonl"))[0]) == ROWS
    write(tmp_path / "rows[1].jsonl", jsonl(ROWS[:1]))
    assert values(read_all(str(tmp_path / "rows[1].jsonl"))[0]) == ROWS[:1]


def test_invalid_jsonl_lines(tmp_path: Path) -> None:
    lines = ['{"a": 1}', '{"a": ', "[1]", "3", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
    url = write(tmp_path / "rows.jsonl", "\n".join(lines))
    rows, bad = read_all(url)
    assert values(rows) == [{"a": 1}]
    assert [row.origin for row in bad] == [f"{url}:{n}" for n in range(2, 7)]
    assert bad[0].reason.startswith("not JSON: ")
    assert bad[1].reason == "expected a JSON object, not list; write one object per line"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.jsonl", "", "the file is empty"),
        ("rows.csv", " \n \n", "the file is empty"),
        ("rows.csv", b"\xef\xbb\xbf", "the file is empty"),
        ("rows.parquet", b"PAR1 and no more", "incomplete or corrupt parquet file"),
        ("rows.txt", "a", "unsupported file type; use one of: .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        (
            "rows.jsonl",
            b'{"a": "x"}\n{"a": "\xe9"}\n',
            r"rows\.jsonl:2: not UTF-8 \(byte 18\); save the file",
        ),
        ("rows.csv", b"\xef\xbb\xbfa\n\xff\n", r"rows\.csv:2: not UTF-8"),
        ("rows.csv", "a\n1\n".encode("utf-16"), r"rows\.csv:1: not UTF-8"),
    ],
)
def test_invalid_files(name: str, content: str | bytes, problem: str, tmp_path: Path) -> None:
    url = write(tmp_path / name, content)
    with pytest.raises(DataError, match=problem):
        read_all(url)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
    url = write(tmp_path / "rows.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="incomplete or corrupt parquet file"):
        read_all(url)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_all(str(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match="no file matches"):
        read_all(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="the folder has no .jsonl"):
        read_all(str(tmp_path))
    with pytest.raises(DataError, match="Protocol not known: gopher"):
        read_all("gopher://host/rows.jsonl")


def test_folder_of_a_row() -> None:
    assert Row({}, "/data/rows.csv", 1).folder == "/data"
    assert Row({}, "rows.csv", 1).folder == "."
    assert Row({}, "s3://bucket/rows.csv", 1).folder == "s3://bucket"


def test_the_digest_of_a_row_depends_on_its_values_alone() -> None:
    row = Row({"a": 1, "b": "é\ud800", "c": b"x", "d": datetime.date(2026, 1, 1)}, "f", 1)
    assert row.digest() == Row(dict(reversed(row.values.items())), "other", 9).digest()
    assert row.digest() == Row({**row.values, "e": None, "f": float("nan")}, "f", 1).digest()
    assert row.digest() != Row({**row.values, "a": "1"}, "f", 1).digest()


def test_format_of_an_invalid_row() -> None:
    assert str(InvalidRow("rows.csv:3", "no label")) == "rows.csv:3: no label"

"""Rows of Arrow files and streams."""

import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read_all

from rayfuse.errors import DataError

ROWS = [
    {"text": "one", "n": 1, "price": Decimal("1.50"), "day": datetime.date(2026, 1, 2), "file": b"\x89PNG"},
    {"text": None, "n": None, "price": None, "day": None, "file": None},
]


def write(path: Path, kind: str, rows: int = 1) -> str:
    table = pa.Table.from_pylist(ROWS * rows)
    table = table.set_column(0, "text", table["text"].dictionary_encode())
    writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as target, writer(target, table.schema) as opened:
        opened.write_table(table, max_chunksize=1000)
    return str(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_files_and_streams(kind: str, suffix: str, tmp_path: Path) -> None:
    rows, bad = read_all(write(tmp_path / f"rows{suffix}", kind, rows=600))
    assert [row.values for row in rows] == ROWS * 600
    assert [row.line for row in rows] == list(range(1, 1201))
    assert not bad


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_two_columns_of_one_name_are_rejected(suffix: str, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as target, pa.ipc.new_file(target, table.schema) as opened:
            opened.write_table(table)
    with pytest.raises(DataError, match="2 columns have the name `n`; rename all but one"):
        read_all(str(path))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_incomplete_files(kind: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "rows.arrow", kind))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="incomplete or corrupt Arrow file"):
        read_all(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        read_all(str(path))

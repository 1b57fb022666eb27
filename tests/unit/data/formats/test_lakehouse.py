"""Rows of Lance and Delta Lake tables."""

import sys
from collections.abc import Callable
from pathlib import Path

import deltalake
import lance
import pyarrow as pa
import pytest
import reading

from rayfuse.data.readers import list_data_files
from rayfuse.data.row_chunks import RowFiles
from rayfuse.data.rows import Row
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat

ROWS = [{"text": f"text {number}", "stars": number % 3, "photo": b"\x00png"} for number in range(600)]
Writer = Callable[[Path, list[dict], str], str]


def read_all(path: str) -> list[Row]:
    return reading.read_all(path)[0]


def write_lance(folder: Path, rows: list[dict], mode: str) -> str:
    path = str(folder / "reviews.lance")
    lance.write_dataset(pa.Table.from_pylist(rows), path, mode="create" if mode == "error" else mode)
    return path


def write_delta(folder: Path, rows: list[dict], mode: str) -> str:
    path = str(folder / "reviews")
    deltalake.write_deltalake(path, pa.Table.from_pylist(rows), mode=mode)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("write", [write_lance, write_delta])
def test_rows_of_several_versions(tmp_path: Path, write: Writer) -> None:
    write(tmp_path, ROWS[:400], "error")
    path = write(tmp_path, ROWS[400:], "append")
    assert list_data_files(path) == list_data_files(f"{path}/") == [path]
    rows = read_all(path)
    assert sorted((row.values for row in rows), key=lambda row: int(row["text"].split()[1])) == ROWS
    assert [row.values for row in read_all(path)] == [row.values for row in rows]
    assert (rows[9].origin, rows[9].folder) == (f"{path}:10", str(tmp_path))


def test_deleted_rows_and_partitions(tmp_path: Path) -> None:
    path = write_lance(tmp_path, ROWS[:6], "error")
    lance.dataset(path).delete("stars = 0")
    assert [row.values["stars"] for row in read_all(path)] == [1, 2, 1, 2]
    path = str(tmp_path / "parts")
    deltalake.write_deltalake(path, pa.Table.from_pylist(ROWS[:6]), partition_by=["stars"])
    deltalake.DeltaTable(path).delete("text = 'text 1'")
    assert sorted(row.values["stars"] for row in read_all(path)) == [0, 0, 1, 2, 2]


def test_names_of_hugging_face_classes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_list([{"text": "a", "label": 1}], features=features).data.table
    path = str(tmp_path / "labels.lance")
    lance.write_dataset(table, path)
    assert [row.values for row in read_all(path)] == [{"text": "a", "label": "yes"}]


@pytest.mark.parametrize("write", [write_lance, write_delta])
def test_a_new_version_is_a_changed_file(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, ROWS[:2], "error")
    before = RowFiles((path,), {}, CellFormat()).versions()
    assert RowFiles((path,), {}, CellFormat()).versions() == before
    write(tmp_path, ROWS[2:4], "append")
    assert RowFiles((path,), {}, CellFormat()).versions() != before


@pytest.mark.parametrize(
    ("write", "module", "extra"),
    [(write_lance, "lance", "lance"), (write_delta, "deltalake", "delta")],
)
def test_the_error_without_the_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer, module: str, extra: str
) -> None:
    path = write(tmp_path, ROWS[:2], "error")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        DataError, match=rf"tables need (pylance|deltalake); `pip install 'rayfuse\[{extra}\]'`"
    ):
        read_all(path)


def test_column_mapping_of_delta_tables_is_rejected(tmp_path: Path) -> None:
    path = write_delta(tmp_path, ROWS[:2], "error")
    log = tmp_path / "reviews/_delta_log/00000000000000000000.json"
    mapped = log.read_text().replace(
        '"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}'
    )
    log.write_text(mapped)
    assert "columnMapping" in mapped
    with pytest.raises(
        DataError, match=r"reviews: the table has column mapping .*; write it without, or export it"
    ):
        read_all(path)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.lance: cannot be read as a table: .*not found"):
        read_all(f"{tmp_path}/absent.lance")
    (tmp_path / "broken/_delta_log").mkdir(parents=True)
    with pytest.raises(DataError, match="broken: cannot be read as a table: "):
        read_all(f"{tmp_path}/broken")

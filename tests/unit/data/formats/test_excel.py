"""Rows of Excel workbooks."""

import datetime
from pathlib import Path

import pytest
from openpyxl import Workbook
from reading import read_all

from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat, cell_parser


@pytest.fixture(scope="module")
def workbook(tmp_path_factory: pytest.TempPathFactory) -> str:
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    for cells in (
        [None, None],
        ["title", " price ", "code", None, "day"],
        ["Ten", 1.5, 7, "a note", datetime.datetime(2026, 1, 2)],
        [None] * 5,
        [12, "1,234", "007", None, None],
        ["NA", "NA", None],
    ):
        sheet.append(cells)
    test = book.create_sheet("Test rows")
    test.append(["title"])
    test.append(["second"])
    twice = book.create_sheet("twice")
    twice.append(["a", "a"])
    book.create_sheet("empty")
    path = tmp_path_factory.mktemp("excel") / "rows.xlsx"
    book.save(path)
    return str(path)


def test_the_first_sheet(workbook: str) -> None:
    cells = CellFormat(thousands=",")
    kinds = {"title": "str", "price": "float", "code": "int"}
    rows, bad = read_all(workbook, {name: cell_parser(kind, cells) for name, kind in kinds.items()})  # type: ignore[arg-type]
    assert [row.values for row in rows] == [
        {"title": "Ten", "price": 1.5, "code": 7, "day": datetime.datetime(2026, 1, 2)},
        {"title": "12", "price": 1234.0, "code": "007", "day": None},
        {"title": "NA", "price": None, "code": None, "day": None},
    ]
    assert [row.line for row in rows] == [3, 5, 6]
    assert not bad


def test_a_named_sheet(workbook: str) -> None:
    [row] = read_all(f"{workbook}#sheet=Test rows")[0]
    assert row.values == {"title": "second"}
    assert row.folder == str(Path(workbook).parent)


@pytest.mark.parametrize(
    ("sheet", "problem"),
    [
        ("Test row", "no sheet `Test row`; did you mean Test rows"),
        ("twice", "2 columns have the name `a`"),
        ("empty", "the sheet is empty"),
    ],
)
def test_sheets_without_rows(sheet: str, problem: str, workbook: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_all(f"{workbook}#sheet={sheet}")


def test_a_file_that_is_not_a_workbook(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not an Excel workbook: .*; save it as \.xlsx"):
        read_all(str(tmp_path / "rows.xlsx"))

"""Samples of rows from files and tables."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.schema_inference.cell_format import find_cell_format
from rayfuse.schema_inference.sample import Embedded, read_sample


def test_cells_of_csv_are_stripped_of_missing_marks(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('a,b,c\n1,NA,"[1, 2]"\n,x,"[]"\n')
    sample = read_sample(str(file))
    assert sample.columns == {"a": ["1", None], "b": [None, "x"], "c": [[1, 2], []]}
    assert (sample.is_untyped, sample.is_complete, sample.description) == (True, True, "2 rows")


def test_a_sample_is_spread_over_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("n\n" + "".join(f"{number}\n" for number in range(5000)))
    sample = read_sample(str(file), limit=100)
    numbers = [int(number) for number in sample.columns["n"]]
    assert len(numbers) == sample.size == 100
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 500
    assert not sample.is_complete
    assert sample.description == "100 of more than 1,000 rows"


def test_files_inside_rows_are_not_kept() -> None:
    content = b"\x89PNG" + bytes(1000)
    rows = [{"image": {"bytes": content, "path": "a.png"}} for _ in range(40)]
    values = read_sample(rows).columns["image"]
    assert values[30] == Embedded(content[:64], "a.png", None)
    assert values[0] == Embedded(content[:64], "a.png", content)


@pytest.mark.parametrize(
    "table",
    [
        [{"a": 1, "b": "x"}, {"a": None, "b": "y"}],
        pd.DataFrame({"a": [1, None], "b": ["x", "y"]}),
    ],
)
def test_tables_in_memory(table: Any) -> None:
    assert read_sample(table).columns == {"a": [1, None], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [("", "the file is empty"), ("a,b\n", "no rows"), ("a,b\n1\n", "1 cells, the header has 2")],
)
def test_files_without_rows(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    with pytest.raises(SpecError, match=problem):
        read_sample(str(file))


def test_invalid_lines_are_left_out(tmp_path: Path) -> None:
    file = tiny_jobs.write_rows(tmp_path / "rows.jsonl", [{"a": 1}, [1], {"a": 2}])
    assert read_sample(str(file)).columns == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("cells", "marks", "values"),
    [
        (["1,234", "2,345", "12"], {"thousands": ","}, [1234, 2345, 12]),
        (["1,5", "2,25", "12"], {"decimal": ","}, [1.5, 2.25, 12]),
        (["1.234,5", "2,5", "1"], {"decimal": ",", "thousands": "."}, [1234.5, 2.5, 1]),
    ],
)
def test_marks_of_numbers(
    cells: list[str], marks: dict[str, str], values: list[float], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("n;x\n" + "".join(f"{cell};a\n" for cell in cells * 3))
    sample = find_cell_format(read_sample(str(file)))
    assert sample.cells.marks() == marks
    assert sample.columns["n"][:3] == values


def test_marks_of_missing_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("n,x\n" + "1,-\n2,a\n?,-\n3,b\n" * 3)
    sample = find_cell_format(read_sample(str(file)))
    assert "?" in (sample.cells.missing_values or [])
    assert sample.columns["n"][:4] == [1, 2, None, 3]
    assert sample.columns["x"][:2] == ["-", "a"]

"""Rows of csv and tsv files with any delimiter."""

from pathlib import Path

import pytest
from reading import read_all


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_the_delimiter_of_a_csv_file(delimiter: str, start: str, tmp_path: Path) -> None:
    url = tmp_path / "rows.csv"
    cells = [["text", "label"], ['"a\nb, c; d | e"', "x"], ["plain", "y"]]
    url.write_text(start + "\n".join(delimiter.join(line) for line in cells))
    rows, bad = read_all(str(url))
    assert [row.values for row in rows] == [
        {"text": "a\nb, c; d | e", "label": "x"},
        {"text": "plain", "label": "y"},
    ]
    assert [row.line for row in rows] == [2, 4]
    assert not bad


def test_a_first_line_that_names_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"sep=;\r\ntext;label\r\na,b;x\r\n")
    [row] = read_all(str(tmp_path / "rows.csv"))[0]
    assert row.values == {"text": "a,b", "label": "x"}
    assert row.line == 3


def test_tsv_with_other_delimiters_in_its_header(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("a,b,c\n1\n")
    assert [row.values for row in read_all(str(tmp_path / "rows.tsv"))[0]] == [{"a,b,c": "1"}]

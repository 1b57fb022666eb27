"""Rows of a folder of files for each class."""

import logging
from pathlib import Path

import pytest
from reading import read_all

from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.row_chunks import RowFiles
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat, cell_parser


def write(folder: Path, *names: str, content: bytes = b"x") -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_files_by_class(tmp_path: Path) -> None:
    url = write(tmp_path, "dog/10.PNG", "dog/2.jpeg", "cat/old/a.b.webp", "cat/.DS_Store", ".git/x.png")
    rows, bad = read_all(url)
    assert [row.values for row in rows] == [
        {"file_name": "cat/old/a.b.webp", "image": "cat/old/a.b.webp", "label": "cat"},
        {"file_name": "dog/10.PNG", "image": "dog/10.PNG", "label": "dog"},
        {"file_name": "dog/2.jpeg", "image": "dog/2.jpeg", "label": "dog"},
    ]
    assert rows[0].folder == url
    assert rows[0].origin == f"{url}/cat/old/a.b.webp"
    assert not bad


def test_files_that_differ_in_their_suffix_are_one_row(tmp_path: Path) -> None:
    write(tmp_path, "a/1.wav", "a/1.mp4", "a/2.mp3", "a/3.jpg", "a/3.png")
    url = write(tmp_path, "a/1.txt", content="\ufeffGrüße".encode())
    assert [row.values for row in read_all(url)[0]] == [
        {"file_name": "a/1.mp4", "video": "a/1.mp4", "text": "Grüße", "audio": "a/1.wav", "label": "a"},
        {"file_name": "a/2.mp3", "audio": "a/2.mp3", "label": "a"},
        {"file_name": "a/3.jpg", "image": "a/3.jpg", "label": "a"},
        {"file_name": "a/3.png", "image": "a/3.png", "label": "a"},
    ]


def test_names_of_classes_are_parsed_as_labels(tmp_path: Path) -> None:
    [file] = list_data_files(write(tmp_path, "0/a.png", "007/a.png"))
    found = list(read_rows(file, {"label": cell_parser("int", CellFormat())}))
    assert [getattr(row, "values")["label"] for row in found] == [0, "007"]  # noqa: B009


def test_files_of_other_kinds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "b/2.txt", content=b"\xff")
    url = write(tmp_path, "a/1.png", "a/thumbs.db", "README.md", "b/1.png")
    with caplog.at_level(logging.WARNING):
        rows, bad = read_all(url)
    assert [row.values["file_name"] for row in rows] == ["a/1.png", "b/1.png"]
    assert [str(row) for row in bad] == [
        f"{url}/a/thumbs.db: neither image, audio, video nor text by its suffix; rename or remove the file",
        f"{url}/b/2.txt: not UTF-8 (byte 0); save the file as UTF-8",
    ]
    assert f"{url}: left out, as they are in no folder of a class: README.md" in caplog.text


def test_folders_that_are_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.png", "test/cat/2.png")
    with pytest.raises(
        DataError, match=r"are splits, not classes; write the folder of one of them: .*/test, .*/train"
    ):
        list_data_files(str(tmp_path))


def test_folders_of_rows_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and no folders of files by class"):
        list_data_files(write(tmp_path, "2025/rows.csv", "2026/rows.csv"))


def test_a_file_that_is_added_is_another_version(tmp_path: Path) -> None:
    files = RowFiles(tuple(list_data_files(write(tmp_path, "a/1.png"))), {})
    before = files.versions()
    assert files.versions() == before
    write(tmp_path, "a/2.png")
    assert files.versions() != before

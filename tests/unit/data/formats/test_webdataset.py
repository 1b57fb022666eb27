"""Rows of WebDataset archives."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from reading import read_all

from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat, cell_parser


def tar_of(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


FILES = {
    "./a/1.jpg": b"\xff\xd8",
    "./a/1.seg.png": b"\x89PNG",
    "./a/1.cls": b" 3\n",
    "./a/1.json": json.dumps({"caption": "a dog", "jpg": "not this", "size": [1, 2]}).encode(),
    "._1.jpg": b"of macOS",
    "b.txt": "\ufeffGrüße".encode(),
    "b.CLS": b"07",
}
ROWS = [
    {
        "__key__": "./a/1",
        "jpg": b"\xff\xd8",
        "seg.png": b"\x89PNG",
        "cls": 3,
        "caption": "a dog",
        "size": [1, 2],
    },
    {"__key__": "b", "txt": "Grüße", "cls": "07"},
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows(suffix: str, tmp_path: Path) -> None:
    content = tar_of(FILES)
    (tmp_path / f"shard-0.tar{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    rows, bad = read_all(str(tmp_path), {"cls": cell_parser("int", CellFormat())})
    assert [row.values for row in rows] == ROWS
    assert not bad


def test_invalid_rows(tmp_path: Path) -> None:
    files = {"1.json": b"{", "2.json": b"[]", "3.txt": b"\xff", "4.cls": b"a"}
    (tmp_path / "rows.tar").write_bytes(tar_of(files))
    rows, bad = read_all(str(tmp_path / "rows.tar"))
    assert [row.values for row in rows] == [{"__key__": "4", "cls": "a"}]
    assert [str(row).rpartition("rows.tar:")[2] for row in bad] == [
        "1: .json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "2: .json: expected an object, not list",
        "3: .txt: not UTF-8 (byte 0); save it as UTF-8",
    ]


@pytest.mark.parametrize("content", [b"no tar" * 200, tar_of({"1.jpg": b"x" * 5000})[:2000]])
def test_incomplete_archives(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.tar").write_bytes(content)
    with pytest.raises(DataError, match="incomplete or corrupt tar file"):
        read_all(str(tmp_path / "rows.tar"))

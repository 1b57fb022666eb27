"""Splits by the names of files and folders."""

import json
from pathlib import Path

import pytest

from rayfuse.errors import SpecError
from rayfuse.schema_inference.splits import find_splits


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a,b\n1,2\n")
    return folder


def found(data: object, folder: Path) -> dict[str, object]:
    splits = find_splits(data)
    values = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    names = {split: _relative(value, folder) for split, value in values.items()}
    return {split: name for split, name in names.items() if name is not None}


def _relative(value: object, folder: Path) -> object:
    if isinstance(value, tuple):
        return tuple(_relative(item, folder) for item in value)
    return None if value is None else str(value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("file", "siblings", "splits"),
    [
        ("train.csv", ["test.csv", "val.csv"], {"validation": "val.csv", "test": "test.csv"}),
        ("train.csv", ["dev.csv"], {"validation": "dev.csv"}),
        ("drugsTrain.tsv", ["drugsTest.tsv"], {"test": "drugsTest.tsv"}),
        ("Motions_TRAIN.csv", ["Motions_TEST.csv"], {"test": "Motions_TEST.csv"}),
        ("a-training.jsonl.gz", ["a-test.jsonl.gz"], {"test": "a-test.jsonl.gz"}),
        ("train.csv", ["test.jsonl"], {}),
        ("strains.csv", ["tests.csv"], {}),
        ("rows.csv", ["test.csv"], {}),
    ],
)
def test_files_of_other_splits(
    file: str, siblings: list[str], splits: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, file, *siblings)
    assert found(str(tmp_path / file), tmp_path) == {"train": file, **splits}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.jsonl", "test.jsonl", "other.jsonl"], {"train": "train.jsonl", "test": "test.jsonl"}),
        (["train/a.csv", "validation/a.csv"], {"train": "train", "validation": "validation"}),
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
            {
                "train": ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
                "test": "test-00000-of-00001.parquet",
            },
        ),
        (
            ["README.md", "data/train.csv", "data/test.csv"],
            {"train": "data/train.csv", "test": "data/test.csv"},
        ),
        (
            ["reviews_train.csv", "reviews_test.csv"],
            {"train": "reviews_train.csv", "test": "reviews_test.csv"},
        ),
    ],
)
def test_folders(files: list[str], splits: dict[str, object], tmp_path: Path) -> None:
    assert found(str(write(tmp_path, *files)), tmp_path) == splits


def test_a_folder_without_names_of_splits_is_one(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "rows", "2025.csv", "2026.csv"))
    assert found(folder, tmp_path) == {"train": "rows"}


def test_other_files_of_a_folder_are_named(tmp_path: Path) -> None:
    splits = find_splits(str(write(tmp_path, "train.csv", "rooms.csv")))
    assert splits.notes == ["left out, as they name no split: rooms.csv"]


def test_a_hugging_face_dataset_names_its_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/a.arrow", "dev/a.arrow")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "dev"]}))
    assert found(str(tmp_path), tmp_path) == {"train": "train", "validation": "dev"}


def test_tables_by_split() -> None:
    splits = find_splits({"train": [{"a": 1}], "validation": [{"a": 2}]})
    assert (splits.train, splits.validation, splits.test) == ([{"a": 1}], [{"a": 2}], None)
    with pytest.raises(SpecError, match="no split `train` among a, b"):
        find_splits({"a": [], "b": []})


def test_other_values_are_rejected() -> None:
    with pytest.raises(SpecError, match="expected the path or URL of rows, or a table, not int"):
        find_splits(3)

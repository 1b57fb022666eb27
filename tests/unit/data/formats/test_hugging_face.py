"""Datasets of Hugging Face on disk, and their features in parquet files."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from reading import read_all

from rayfuse.data.readers import list_data_files
from rayfuse.errors import DataError

FEATURES = Features(
    {
        "text": Value("string"),
        "image": Image(decode=False),
        "label": ClassLabel(names=["no", "yes"]),
        "tags": List(ClassLabel(names=["O", "B-X"])),
        "facts": {"kind": ClassLabel(names=["q", "r"]), "n": Value("int64")},
    }
)
CONTENT = {"bytes": b"\x89PNG", "path": "a.png"}
ROWS = [
    {"text": "a", "image": CONTENT, "label": "no", "tags": ["O", "B-X"], "facts": {"kind": "q", "n": 1}},
    {"text": "b", "image": CONTENT, "label": "yes", "tags": [], "facts": {"kind": "r", "n": 0}},
    {"text": "c", "image": None, "label": None, "tags": ["O"], "facts": {"kind": None, "n": None}},
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rows = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    rows["label"] = [0, 1, -1]  # -1: no label
    rows["tags"] = [[0, 1], [], [0]]
    rows["facts"] = [{"kind": 0, "n": 1}, {"kind": 1, "n": 0}, {"kind": -1, "n": None}]
    return Dataset.from_dict(rows, features=FEATURES)


def test_a_saved_dataset(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(b"of an operation on the dataset")
    rows, bad = read_all(str(tmp_path / "saved"))
    assert [row.values for row in rows] == ROWS
    assert not bad


def test_parquet_with_features(dataset: Dataset, tmp_path: Path) -> None:
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert [row.values for row in read_all(str(tmp_path / "rows.parquet"))[0]] == ROWS


def test_a_dataset_of_several_splits(dataset: Dataset, tmp_path: Path) -> None:
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"several splits; write the folder of one of them: .*saved/train, .*saved/test"
    ):
        list_data_files(str(tmp_path / "saved"))
    assert len(read_all(str(tmp_path / "saved" / "test"))[0]) == 3

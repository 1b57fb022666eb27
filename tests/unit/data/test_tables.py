"""Tables in memory, written as parquet."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayfuse.data.readers import read_rows
from rayfuse.data.row_adapter import RowAdapter, describe_inputs
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor
from rayfuse.data.tables import store_tables, write_table
from rayfuse.errors import DataError, ResourceError
from rayfuse.spec.cells import parse_json
from rayfuse.spec.job import Job

ROWS = [{"text": "good", "stars": 5}, {"text": None, "stars": 1}, {"stars": 3, "note": [1.5, 2.5]}]
RED = Image.new("RGB", (8, 8), (250, 0, 0))


def make_job(train: Any, inputs: Any = None, **data: Any) -> Job:
    return Job(
        name="t",
        data={"train": train, **data},
        inputs=inputs
        or {
            "image": {"type": "image", "size": 8, "encoder": {"type": "conv"}, "optional": True},
            "text": {"type": "text", "encoder": {"type": "conv"}, "optional": True},
        },
        fusion={"type": "concat"},
        tasks={"stars": {"type": "classification"}},
    )


def rows_of(table: Any, folder: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(write_table(table, str(folder), make_job("x.csv").inputs)))
    return [row.values for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    "table",
    [ROWS, pd.DataFrame(ROWS), pa.Table.from_pylist([{"note": None, **row} for row in ROWS]), datasets.Dataset.from_list([{"note": None, **row} for row in ROWS])],
    ids=["list", "pandas", "arrow", "datasets"],
)  # fmt: skip
def test_every_kind_of_table_has_the_same_rows(table: Any, tmp_path: Path) -> None:
    expected = [
        {"text": "good", "stars": 5, "note": None},
        {"text": None, "stars": 1, "note": None},
        {"text": None, "stars": 3, "note": [1.5, 2.5]},
    ]
    assert rows_of(table, tmp_path) == expected


def test_missing_values_of_pandas_are_null(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "text": pd.array(["a", pd.NA], dtype="string"),
        "number": [1.0, np.nan],
        "date": [pd.Timestamp("2026-01-02"), pd.NaT],
        "kind": pd.Categorical(["x", None]),
    })  # fmt: skip
    last = rows_of(frame, tmp_path)[1]
    assert last == {"text": None, "number": None, "date": None, "kind": None}


def test_the_same_rows_are_written_once(tmp_path: Path) -> None:
    job = make_job(pd.DataFrame(ROWS)).override(**{"output.storage": str(tmp_path)})
    first, again = store_tables(job), store_tables(job)
    assert first == again
    assert [path.suffix for path in (tmp_path / "tables").iterdir()] == [".parquet"]
    other = store_tables(job.override(**{"data.train": ROWS[:2]}))
    assert other.data.train != first.data.train
    assert store_tables(first) is first


def test_every_split_may_be_in_memory(tmp_path: Path) -> None:
    job = make_job(ROWS, validation=ROWS[:1], test=ROWS[:2]).override(**{"output.storage": str(tmp_path)})
    stored = store_tables(job)
    counts = [pq.read_metadata(str(url)).num_rows for url in (stored.data.train, stored.data.validation, stored.data.test)]  # fmt: skip
    assert counts == [3, 1, 2]
    assert Job.from_yaml(_saved(stored, tmp_path)).data == stored.data


def _saved(job: Job, folder: Path) -> Path:
    job.to_yaml(folder / "job.yaml")
    return folder / "job.yaml"


def test_images_become_files(tmp_path: Path) -> None:
    [row] = rows_of(pd.DataFrame({"image": [RED], "stars": [5]}), tmp_path)
    decoded = Image.open(io.BytesIO(row["image"]))
    assert decoded.getpixel((3, 3)) == (250, 0, 0)


@pytest.mark.parametrize("kind", [list, pd.DataFrame])
def test_objects_are_stored_as_predictions_read_them(kind: Any, tmp_path: Path) -> None:
    encoder = {"type": "conv"}
    inputs = make_job("x.csv", inputs={
        "image": {"type": "image", "size": 8, "encoder": encoder},
        "more": {"type": "image", "size": 8, "encoder": encoder, "max_items": 2},
        "clip": {"type": "audio", "encoder": encoder},
        "sensor": {"type": "timeseries", "channels": ["x", "y"], "encoder": encoder},
    }).inputs  # fmt: skip
    pixels = np.asarray(RED)
    rows = [
        {
            "image": pixels,
            "more": [RED, pixels],
            "clip": (np.zeros(800, dtype=np.float32), 8000),
            "sensor": pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}),
        }
    ]
    [row] = read_rows(write_table(kind(rows), str(tmp_path), inputs))
    assert isinstance(row, Row)
    adapted = RowAdapter(describe_inputs(inputs)).read(rows[0])
    assert row.values == adapted
    assert Image.open(io.BytesIO(adapted["image"])).getpixel((3, 3)) == (250, 0, 0)
    assert [content[:4] for content in (*adapted["more"], adapted["clip"])] == [
        b"\x89PNG",
        b"\x89PNG",
        b"RIFF",
    ]


def test_lists_in_a_csv_of_pandas_are_those_of_the_file(tmp_path: Path) -> None:
    inputs = make_job("x.csv", inputs={
        "sensor": {"type": "timeseries", "channels": ["x"], "encoder": {"type": "conv"}},
        "texts": {"type": "text", "max_items": 2, "encoder": {"type": "conv"}},
    }).inputs  # fmt: skip
    (tmp_path / "a.csv").write_text('sensor,texts,label\n"[[1, null]]","[""a"", ""b""]",x\n,,y\n')
    parsers = dict.fromkeys(inputs, parse_json)
    expected = [row.values for row in read_rows(str(tmp_path / "a.csv"), parsers) if isinstance(row, Row)]
    url = write_table(pd.read_csv(tmp_path / "a.csv"), str(tmp_path / "tables"), inputs)
    assert [row.values for row in read_rows(url) if isinstance(row, Row)] == expected


def test_numbers_in_a_text_column_of_pandas_are_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [12.0, None, 7.5], "stars": [1, 2, 3]})
    assert rows_of(frame, tmp_path) == [
        {"text": "12", "stars": 1},
        {"text": None, "stars": 2},
        {"text": "7.5", "stars": 3},
    ]


def test_images_of_hugging_face_stay_encoded(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    dataset = datasets.Dataset.from_dict({"image": [str(tmp_path / "red.png")], "stars": [5]})
    dataset = dataset.cast_column("image", datasets.Image())
    url = write_table(dataset, str(tmp_path), make_job("x.csv").inputs)
    [row] = read_rows(url)
    assert isinstance(row, Row)
    preprocessor = Preprocessor(make_job("x.csv").inputs)
    assert preprocessor.from_row(row).features["image"]


def test_paths_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"image": "red.png", "text": "red.png"},
        {"image": "s3://bucket/red.png", "text": None},
        {"image": "/a/b.png", "text": None},
        {"image": "data:image/png;base64,aGk=", "text": None},
        {"image": None, "text": None},
    ]
    found = rows_of(rows, tmp_path / "tables")
    assert [row["image"] for row in found] == [
        str(tmp_path / "red.png"),
        "s3://bucket/red.png",
        "/a/b.png",
        "data:image/png;base64,aGk=",
        None,
    ]
    assert found[0]["text"] == "red.png"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pd.DataFrame({"a": []}), "train: the DataFrame has no rows"),
        (pd.DataFrame({0: [1]}), "train: column 0 is not named by a text; rename the columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns are named 'a'; rename all but one"),
        ([{"a": 1}, {"a": "x"}], r"column 'a' has values of several or unknown types \(int, str\).*astype\(str\)"),
        ([{"a": 2**64}], r"column 'a' has values of several or unknown types \(int\).*too large"),
        (pd.DataFrame({"a": [object()]}), r"column 'a' has values of several or unknown types \(object\)"),
    ],
)  # fmt: skip
def test_unusable_tables_are_rejected(table: Any, problem: str, tmp_path: Path) -> None:
    job = make_job(table).override(**{"output.storage": str(tmp_path)})
    with pytest.raises(DataError, match=problem):
        store_tables(job)
    assert not list(tmp_path.rglob("*partial*"))


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="rows in memory cannot be written there"):
        write_table(ROWS, str(tmp_path / "file"), {})


def test_a_dataset_dict_is_not_one_table() -> None:
    from rayfuse.errors import SpecError

    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS[:1])})
    with pytest.raises(SpecError, match="not one table; pass one split each of: train"):
        make_job(splits)

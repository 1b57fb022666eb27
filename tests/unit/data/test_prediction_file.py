"""Files of predictions: their parts, and how parts of different types are merged."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from rayfuse.data.prediction_columns import PredictionColumns
from rayfuse.data.prediction_file import PredictionFile
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.errors import ResourceError, SpecError


def scored(**values: Any) -> dict[str, Any]:
    return {**values, "inputs_used": ["text"], "error": None}


def failed(reason: str) -> dict[str, Any]:
    return {"inputs_used": None, "error": reason}


def merge(url: str, *parts: list[dict[str, Any]]) -> tuple[int, int]:
    target = PredictionFile(url)
    target.begin({"run": 1})
    for number, rows in enumerate(parts):
        target.write_part(f"00000-{number:06d}", rows)
    return target.merge([f"00000-{number:06d}" for number in range(len(parts))])


def test_parts_are_merged_in_order_and_removed(tmp_path: Path) -> None:
    url = str(tmp_path / "out.parquet")
    assert merge(url, [scored(answer="a"), failed("bad")], [scored(answer="b", extra=1)]) == (3, 1)
    frame = pd.read_parquet(url)
    assert list(frame.columns) == ["answer", "extra", "inputs_used", "error"]
    assert frame["answer"].fillna("").tolist() == ["a", "", "b"]
    assert frame["error"].fillna("").tolist() == ["", "bad", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (1, 2.5, [1.0, 2.5]),
        (1, "x", ["1", "x"]),
        (None, 3, [None, 3]),
        ([1], "x", ["[1]", "x"]),
        (2**53 + 1, 2.5, ["9007199254740993", "2.5"]),
        (2**64 + 1, 3, ["18446744073709551617", "3"]),
    ],
)
def test_types_of_parts_may_differ(tmp_path: Path, first: Any, second: Any, merged: list[Any]) -> None:
    url = str(tmp_path / "out.jsonl")
    merge(url, [scored(value=first)], [scored(value=second)])
    assert [json.loads(line)["value"] for line in Path(url).read_text().splitlines()] == merged


def test_a_part_may_have_values_of_several_types(tmp_path: Path) -> None:
    url = str(tmp_path / "out.csv")
    merge(url, [scored(value=1, tags=["é", "b"]), scored(value="x", tags=[])])
    assert Path(url).read_text().splitlines() == [
        "value,tags,inputs_used,error",
        '1,"[""é"", ""b""]","[""text""]",',
        'x,[],"[""text""]",',
    ]


def test_a_file_in_a_store_appears_whole() -> None:
    url = "memory://predictions/out.parquet"
    merge(url, [scored(answer=1)])
    fs = fsspec.filesystem("memory")
    assert fs.find("/predictions") == ["/predictions/out.parquet"]
    with fs.open("/predictions/out.parquet") as file:
        assert pd.read_parquet(file)["answer"].tolist() == [1]


def test_only_parts_of_the_same_run_are_resumed(tmp_path: Path) -> None:
    target = PredictionFile(str(tmp_path / "out.csv"))
    assert target.begin({"model": 1}) == set()
    target.write_part("00000-000000", [scored(answer=1)])
    assert target.begin({"model": 1}) == {"00000-000000"}
    assert target.begin({"model": 2}) == set()
    target.write_part("00000-000000", [scored(answer=1)])
    assert target.begin({"model": 2}, resume=False) == set()


def test_other_types_of_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"out\.xlsx: unsupported type of output; .*\.parquet, \.jsonl, \.csv"
    ):
        PredictionFile(str(tmp_path / "out.xlsx"))


PREDICTION = {
    "outputs": {
        "colour": {"label": 1, "scores": {"1": 0.75, "2": 0.25}},
        "kinds": {"labels": ["a"], "scores": {"a": 0.9, "b": 0.1}},
        "price": {"value": 2.5},
        "words": {"tags": ["O"], "entities": []},
    },
    "inputs_used": ["text"],
}
ROW = Row({"id": 7, "photo": b"png", "list": [1], "price": 3.0, "none": None}, "rows.csv", 2)


def test_a_row_has_the_answer_and_its_probability_for_each_task() -> None:
    columns = PredictionColumns(("colour", "kinds", "price", "words"))
    assert columns.to_row(ROW, PREDICTION) == {
        "id": 7,
        "colour": 1,
        "colour_score": 0.75,
        "kinds": ["a"],
        "kinds_score": [0.9],
        "price": 2.5,
        "words": ["O"],
        "words_entities": [],
        "inputs_used": ["text"],
        "error": None,
    }


def test_kept_columns_and_all_scores_are_chosen() -> None:
    columns = PredictionColumns(("colour",), keep=("list",), scores=True)
    found = columns.to_row(ROW, PREDICTION)
    assert found["list"] == [1]
    assert "id" not in found
    assert found["colour_scores"] == {"1": 0.75, "2": 0.25}


def test_an_invalid_row_has_its_reason() -> None:
    found = PredictionColumns(("price",)).to_row(ROW, InvalidRow("rows.csv:2", "photo: not an image"))
    assert found == {
        "id": 7,
        "price": None,
        "price_score": None,
        "inputs_used": None,
        "error": "rows.csv:2: photo: not an image",
    }


def test_columns_to_keep_are_checked_against_the_data() -> None:
    assert list(PredictionColumns(("price",)).check([ROW])) == ["price"]
    with pytest.raises(SpecError, match="keep: fotos: not a column of the data; did you mean photo"):
        list(PredictionColumns(("price",), keep=("fotos",)).check([ROW]))
    with pytest.raises(SpecError, match="keep: price: the predictions have a column of this name"):
        list(PredictionColumns(("price",), keep=("price",)).check([ROW]))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = str(tmp_path / "file" / "out.csv")
    with pytest.raises(ResourceError, match=r"file/out\.csv: cannot be written: .* write elsewhere"):
        PredictionFile(url).begin({})

"""Rows with the training columns or a value per input."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rayfuse.data.row_adapter import InputDescription, RowAdapter, describe_inputs, explain_unknown_input
from rayfuse.errors import InvalidInputError
from rayfuse.spec.inputs import Input, default_columns
from rayfuse.spec.job import Job


def build(**inputs: Any) -> dict[str, Input]:
    """Return the inputs of a job with these blocks; encoders are the smallest."""
    encoders = {"tabular": "mlp", "item_sequence": "embedding"}
    blocks = {
        name: {"encoder": {"type": encoders.get(block["type"], "conv")}, **block}
        for name, block in inputs.items()
    }
    job = Job.model_validate(
        {
            "kind": "job",
            "name": "t",
            "data": {"train": "a.csv"},
            "inputs": default_columns(blocks),
            "fusion": {"type": "concat"},
            "tasks": {"y": {"type": "regression", "column": "y"}},
            "output": {"storage": "runs"},
        }
    )
    return job.inputs


def adapt(**inputs: Any) -> RowAdapter:
    return RowAdapter(describe_inputs(build(**inputs)))


TABLE = {"type": "tabular", "columns": {"age": "number", "city": "category"}}
TEXT = {"type": "text"}


def test_cells_are_parsed_as_those_of_csv_files() -> None:
    adapter = adapt(
        facts=TABLE,
        history={"type": "item_sequence"},
        words={"type": "text", "max_items": 3},
        sensor={"type": "timeseries", "channels": 1},
    )
    row = {"age": "38.5", "city": "007", "history": "[1, 2]", "words": '["a", "b"]', "sensor": "[[1, null]]"}
    assert adapter.read(row) == {
        "facts": {"age": 38.5, "city": "007"},
        "history": [1, 2],
        "words": ["a", "b"],
        "sensor": [[1, None]],
    }
    assert adapter.read({"age": "n/a", "city": "Oslo "}) == {"facts": {"age": None, "city": "Oslo"}}
    assert adapter.read({"age": 3, "city": "NA"}) == {"facts": {"age": 3, "city": "NA"}}


def test_a_tabular_input_in_one_column() -> None:
    adapter = adapt(person={**TABLE, "column": "who"})
    value = {"age": 3}
    assert adapter.read({"who": value}) == adapter.read({"person": value}) == {"person": value}
    assert adapter.read({"who": '{"age": 3}'}) == {"person": value}
    with pytest.raises(InvalidInputError, match="both as `person` and as `who`"):
        adapter.read({"who": value, "person": value})


def test_an_input_with_the_name_of_its_column() -> None:
    adapter = adapt(age=TABLE)
    assert adapter.read({"age": 3}) == {"age": {"age": 3, "city": None}}
    assert adapter.read({"age": {"age": 3}}) == {"age": {"age": 3}}
    with pytest.raises(InvalidInputError, match="age: given both as `age` and as `city`"):
        adapter.read({"age": {"age": 3}, "city": "Rome"})


def test_an_input_with_the_name_of_another_inputs_column() -> None:
    adapter = adapt(facts=TABLE, city={**TEXT, "column": "city_text"})
    as_columns = {"age": 3, "city": "Rome", "city_text": "a city"}
    as_values = {"facts": {"age": 3, "city": "Rome"}, "city": "a city"}
    assert adapter.read(as_columns) == adapter.read(as_values) == as_values
    with pytest.raises(InvalidInputError, match="facts: given both as `facts` and as `city`"):
        adapter.read({**as_values, "city_text": "a city"})


def test_two_inputs_of_one_column() -> None:
    adapter = adapt(note=TEXT, summary={**TEXT, "column": "note"})
    assert adapter.read({"note": "a"}) == {"note": "a", "summary": "a"}
    assert adapter.read({"note": "a", "summary": "b"}) == {"note": "a", "summary": "b"}


def test_the_audio_of_a_video_is_read_only_if_it_is_given() -> None:
    adapter = RowAdapter(
        {
            "clip": InputDescription("video", ("file",), {"film": "str"}, False, 1, False, None),
            "sound": InputDescription("audio", ("file",), {"film": "str"}, False, 1, True, "clip"),
        }
    )
    assert adapter.read({"film": b"v"}) == adapter.read({"clip": b"v"}) == {"clip": b"v"}
    assert adapter.read({"film": b"v", "sound": b"a"}) == {"clip": b"v", "sound": b"a"}


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    adapter = adapt(photo={"type": "image", "column": "file"}, more={"type": "image", "max_items": 2})
    (tmp_path / "a.png").write_bytes(b"1")
    expected = {"photo": b"1", "more": [b"1", b"2"]}
    row = {"file": "a.png", "more": [{"path": "a.png", "bytes": None}, b"2"]}
    assert adapter.read(row, str(tmp_path)) == expected
    assert adapter.read({**row, "file": str(tmp_path / "a.png")}, str(tmp_path)) == expected
    assert adapter.read({"photo": {"b64": "MQ=="}, "more": [{"url": (tmp_path / "a.png").as_uri()}]}) == {
        "photo": b"1",
        "more": [b"1"],
    }


@pytest.mark.parametrize("value", ["/etc/hostname", "https://example.com/a.png", {"url": "file:///a"}])
def test_files_are_not_read_without_a_folder(value: Any) -> None:
    adapter = adapt(photo={"type": "image"}, sensor={"type": "timeseries", "channels": 1})
    for name in ("photo", "sensor"):
        with pytest.raises(
            InvalidInputError, match=f"{name}: expected the bytes of a file, got a path or URL"
        ):
            adapter.read({name: value}, None)
    assert adapter.read({"photo": b"1", "sensor": "[1, 2]"}, None) == {"photo": b"1", "sensor": [1, 2]}


@pytest.mark.parametrize("folder", [".", None])
def test_data_uris_need_no_folder(folder: str | None) -> None:
    adapter = adapt(
        photo={"type": "image"},
        more={"type": "image", "max_items": 2},
        sensor={"type": "timeseries", "channels": 1},
    )
    uri = "data:image/png;base64,MTI_"
    row = {"photo": {"b64": "MTI_ "}, "more": [{"url": uri}, {"b64": uri}], "sensor": "data:text/csv,1%0A2"}
    assert adapter.read(row, folder) == {"photo": b"12?", "more": [b"12?", b"12?"], "sensor": b"1\n2"}
    assert adapter.read({"photo": uri}, folder) == {"photo": b"12?"}
    with pytest.raises(InvalidInputError, match="photo: data:image/png;base64,.: not base64"):
        adapter.read({"photo": "data:image/png;base64,*"}, folder)


def test_rows_of_a_frame_have_no_missing_cells() -> None:
    adapter = adapt(facts=TABLE, note=TEXT)
    frame = pd.DataFrame(
        {"age": [1, pd.NA], "city": [None, "Rome"], "note": [7.0, float("nan")], "label": ["x", "y"]}
    )
    assert adapter.rows_of(frame) == [{"age": 1, "note": "7"}, {"city": "Rome"}]


def test_descriptions_are_json() -> None:
    for described in describe_inputs(build(facts=TABLE, photo={"type": "image", "max_items": 2})).values():
        assert InputDescription.from_json(described.to_json()) == described


def test_a_column_of_an_input_is_explained() -> None:
    inputs = build(facts=TABLE, note={**TEXT, "column": "text"})
    assert explain_unknown_input("age", inputs).endswith('a column of `facts`: give {"facts": {"age": …}}')
    assert explain_unknown_input("text", inputs).endswith("the column of `note`: give `note`")
    assert explain_unknown_input("x", inputs) == "not an input of this model; it has: facts, note"

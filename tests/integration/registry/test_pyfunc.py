"""MLflow's python function with the rows of training, through MLflow's own schema."""

import random
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from kinds_of_input import make_job, make_rows
from mlflow.types import DataType
from mlflow.types.schema import AnyType, Array, Map, Object, Property
from tiny_jobs import make_model_folder, tiny_job, write_rows

from rayfuse.errors import InvalidInputError
from rayfuse.model.model_io import load_job
from rayfuse.registry.pyfunc import signature
from rayfuse.registry.registration import save_pyfunc
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of a table, trained on rows.csv, whose columns are integers, floats and texts."""
    folder = tmp_path_factory.mktemp("table")
    rng = random.Random(0)
    rows = [
        {
            "age": rng.randint(20, 60),
            "zip": rng.choice([8001, 8002]),
            "city": "AB"[i % 2],
            "label": i % 2,
        }
        for i in range(60)
    ]
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    job = {
        "kind": "job",
        "name": "table",
        "data": {"train": str(folder / "rows.csv")},
        "inputs": {
            "facts": {
                "type": "tabular",
                "columns": {"age": "number", "zip": "category", "city": "category"},
                "encoder": {"type": "mlp"},
            }
        },
        "fusion": {"type": "concat"},
        "tasks": {"label": {"type": "classification"}},
        "output": {"storage": str(folder / "runs")},
    }
    write_rows(folder / "job.yaml", [job])
    make_model_folder(folder, steps=30, job=load_spec(folder / "job.yaml", Job))
    return folder


def load(folder: Path, target: Path, **options: Any) -> Any:
    """Save a model folder as a python function below `target`, and load it as MLflow does."""
    return mlflow.pyfunc.load_model(str(save_pyfunc(target, load_job(folder)[0], folder)), **options)


def test_a_csv_that_the_model_was_trained_on(table_folder: Path, tmp_path: Path) -> None:
    function = load(table_folder / "model", tmp_path)
    frame = pd.read_csv(table_folder / "rows.csv")
    assert [str(kind) for kind in frame.dtypes[:2]] == ["int64", "int64"]
    found = function.predict(frame)
    assert list(found["label/label"]) == list(frame["label"])
    assert [spec.name for spec in function.metadata.signature.outputs.inputs] == list(found.columns)
    assert list(function.predict(function.input_example)["inputs_used"]) == [["facts"]]
    without_label = function.predict(frame.drop(columns="label"))
    by_input = function.predict(pd.DataFrame({"facts": frame[["age", "zip", "city"]].to_dict("records")}))
    pd.testing.assert_frame_equal(without_label, found)
    pd.testing.assert_frame_equal(by_input, found)
    some = frame.assign(age=None, city=None, zip=[*frame["zip"][:-1], None]).iloc[[5, -1]]
    with pytest.raises(InvalidInputError, match="row 1: facts: missing"):
        function.predict(some)
    assert list(function.predict(some[:1]).index) == [5]


def test_rows_of_every_kind(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    make_model_folder(tmp_path, steps=0, job=make_job(tmp_path, rows))
    function = load(tmp_path / "model", tmp_path / "closed")
    assert list(function.predict(function.input_example)["inputs_used"]) == [
        ["sensor", "person", "history", "text"]
    ]
    row = {**rows[1], "images": [(tmp_path / "red.png").read_bytes()]}
    frame = pd.DataFrame([{**row, "clip": (tmp_path / "dark.mp4").read_bytes()}, rows[0] | {"clip": None}])
    frame.at[1, "images"] = None
    used = ["clip", "sound", "sensor", "person", "history", "images", "text"]
    assert list(function.predict(frame)["inputs_used"]) == [used, ["sensor", "person", "text"]]


def test_a_model_that_requires_a_file_has_no_example(tmp_path: Path) -> None:
    make_model_folder(
        tmp_path,
        steps=0,
        job=tiny_job(tmp_path / "data", **{"inputs.image.optional": False, "data.max_bad_rows": 1.0}),
    )
    assert load(tmp_path / "model", tmp_path / "saved").input_example is None


def test_files_that_rows_name_are_read_from_the_media_folder_only(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    make_model_folder(tmp_path, steps=0, job=make_job(tmp_path, rows))
    frame = pd.DataFrame([{"clip": "dark.mp4", "text": "a"}])
    with pytest.raises(InvalidInputError, match=r"row 0: clip: expected the bytes .* model_config="):
        load(tmp_path / "model", tmp_path / "closed").predict(frame)
    opened = load(tmp_path / "model", tmp_path / "open", model_config={"media_folder": str(tmp_path)})
    assert list(opened.predict(frame)["inputs_used"]) == [["clip", "sound", "text"]]


def test_the_signature_has_columns_inputs_and_predictions(table_folder: Path) -> None:
    job = load_job(table_folder / "model")[0]
    found = signature(job)
    inputs = {spec.name: (spec.type, spec.required) for spec in found.inputs.inputs}
    assert inputs == dict.fromkeys(["facts", "age", "zip", "city"], (AnyType(), False))
    outputs = {spec.name: spec.type for spec in found.outputs.inputs}
    assert outputs == {
        "label/label": DataType.long,
        "label/scores": Map(DataType.double),
        "inputs_used": Array(DataType.string),
    }


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"type": "regression", "column": "y"}, {"t/value": DataType.double}),
        (
            {"type": "classification", "column": "y", "classes": [1, 2]},
            {"t/label": DataType.long, "t/scores": Map(DataType.double)},
        ),
        (
            {"type": "classification", "column": "y", "classes": [1, "a"]},
            {"t/label": AnyType(), "t/scores": Map(DataType.double)},
        ),
        (
            {"type": "classification", "column": "y", "classes": [f"class {i}" for i in range(101)]},
            {"t/label": DataType.string, "t/scores": Map(DataType.double)},
        ),
        (
            {"type": "multi_label", "column": "y", "classes": ["a", "b"]},
            {"t/labels": Array(DataType.string), "t/scores": Map(DataType.double)},
        ),
        (
            {"type": "tagging", "column": "y", "input": "text", "entities": ["PER"]},
            {
                "t/tags": Array(DataType.string),
                "t/entities": Array(
                    Object(
                        [
                            Property("type", DataType.string),
                            Property("start", DataType.long),
                            Property("end", DataType.long),
                        ]
                    )
                ),
            },
        ),
        (
            {"type": "matching", "inputs": ["text", "other"]},
            {"t/match": DataType.boolean, "t/score": DataType.double},
        ),
        (
            {"type": "retrieval", "inputs": ["text", "other"], "dim": 4},
            {"t/embeddings": Map(Array(DataType.double)), "t/similarity": DataType.double},
        ),
    ],
)
def test_the_predictions_of_every_task_have_types(
    tmp_path: Path, task: dict[str, Any], expected: dict[str, Any]
) -> None:
    text = {"type": "text", "encoder": {"type": "transformer", "pool": "none"}}
    job = {
        "kind": "job",
        "name": "t",
        "data": {"train": "a.csv"},
        "inputs": {"text": text, "other": text},
        "fusion": {"type": "concat"},
        "tasks": {"t": task},
        "output": {"storage": "runs"},
    }
    write_rows(tmp_path / "job.yaml", [job])
    found = signature(load_spec(tmp_path / "job.yaml", Job))
    outputs = {spec.name: spec.type for spec in found.outputs.inputs if spec.name != "inputs_used"}
    assert outputs == expected

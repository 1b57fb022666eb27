"""Every kind of input over HTTP, from the command line, and through MLflow's python function."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import costly_inputs
import hostile_requests
import numpy as np
import pandas as pd
import pytest
from endpoints import b64, problem_of
from jsonschema import Draft202012Validator
from kinds_of_input import make_job, make_rows
from starlette.testclient import TestClient
from tiny_clips import make_clip
from tiny_jobs import make_model_folder

from rayfuse.cli.predict import parse_values, to_row
from rayfuse.errors import SpecError
from rayfuse.model.predictor import Predictor
from rayfuse.registry.pyfunc import FusedPythonModel, signature
from rayfuse.serving import client as http
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine, warm_up
from rayfuse.serving.settings import Settings

TABLE = {"age": 30, "city": "Rome"}
ALL = ["clip", "sound", "sensor", "person", "history", "images", "text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    make_model_folder(folder, steps=0, job=make_job(folder, make_rows(folder)))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Predictor:
    return Predictor(folder / "model")


@pytest.fixture(scope="module")
def client(model: Predictor) -> Iterator[TestClient]:
    engine = InferenceEngine(model, Settings(version=3, batch_wait_timeout=0.0))
    with TestClient(
        build_app(engine), "http://localhost", client=("127.0.0.1", 50000), raise_server_exceptions=False
    ) as client:
        yield client
    engine.decoders.close()


@pytest.fixture(scope="module")
def all_inputs(folder: Path) -> dict[str, Any]:
    """Return all inputs as JSON; the audio is in the clip."""
    images = [b64((folder / name).read_bytes()) for name in ("red.png", "green.png")]
    return {
        "clip": b64((folder / "dark.mp4").read_bytes()),
        "sensor": [[1, None, 2], [0.5, 1, 2]],
        "person": TABLE,
        "history": [{"id": 1, "time": "2026-01-01"}, {"id": "2", "time": "2026-01-02T10:00:00Z"}],
        "images": images,
        "text": ["dark", "or", "bright?"],
    }


@pytest.fixture(scope="module")
def answer(client: TestClient, all_inputs: dict[str, Any]) -> Any:
    response = client.post("/predict", json={"inputs": all_inputs})
    assert response.status_code == 200, response.text
    return response.json()


def test_warm_up(model: Predictor) -> None:
    warm_up(model)


def test_json(answer: Any) -> None:
    assert answer["inputs_used"] == ALL


def test_the_openapi_document_describes_the_request(
    client: TestClient, model: Predictor, all_inputs: dict[str, Any]
) -> None:
    document = client.get("/openapi.json").json()
    validator = Draft202012Validator({**document, "$ref": "#/components/schemas/Request"})
    validator.validate({"inputs": {**all_inputs, "sound": None}})
    images = document["components"]["schemas"]["Inputs"]["properties"]["images"]
    many = [*all_inputs["images"], None]
    validator.validate({"inputs": {**all_inputs, "images": many}})
    assert client.post("/predict", json={"inputs": {**all_inputs, "images": many}}).is_success
    assert f'"maxItems": {model.job.inputs["images"].max_items}' in json.dumps(images)
    assert not validator.is_valid({"inputs": {**all_inputs, "images": many * 100}})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("clip", costly_inputs.gif_frames, "clip: a video of 5900 × 5900 pixels"),
        ("sound", costly_inputs.mp4_samples, "sound: the index of the audio file has 100000000 entries"),
        ("sensor", costly_inputs.csv_columns, "sensor: a line has more than 100000 cells"),
        ("images", costly_inputs.webp, "images: an image of 9400 × 9400 pixels (WEBP) takes 1.77 GB"),
    ],
)
def test_costly_files_are_rejected(
    name: str, value: Callable[[], bytes], reason: str, client: TestClient, all_inputs: dict[str, Any]
) -> None:
    content: Any = b64(value())
    inputs = {**all_inputs, name: [content] if name == "images" else content}
    assert problem_of(client.post("/predict", json={"inputs": inputs}), 422, reason)["input"] == name


def test_costly_values_are_rejected(client: TestClient, all_inputs: dict[str, Any]) -> None:
    for name, value, reason in (
        ("history", [1] * 1_000_001, "history: 1000001 items exceed the maximum of 1000000"),
        ("sensor", [["x" * 100_000, *[""] * 500], [0.0] * 501], "channel x: expected a number or null"),
    ):
        response = client.post("/predict", json={"inputs": {**all_inputs, name: value}})
        problem_of(response, 422, reason)
    marks = {"age": 1, "city": "a" + "\u0300" * 100_000 + "\u0323" * 100_000}
    assert client.post("/predict", json={"inputs": {**all_inputs, "person": marks}}).is_success


def test_the_time_of_all_values_of_a_request_is_limited(
    model: Predictor, client: TestClient, all_inputs: dict[str, Any]
) -> None:
    engine = InferenceEngine(model, Settings(max_decode_time=0.5, batch_wait_timeout=0.0))
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as short:
        assert short.post("/predict", json={"inputs": all_inputs}).is_success
        many = {"instances": [{"inputs": all_inputs}] * 200}
        found = problem_of(short.post("/predict", json=many), 422, "more than 0.5 s of CPU time to decode")
    assert found["index"] > 0
    engine.decoders.close()


def test_forms(client: TestClient, all_inputs: dict[str, Any], answer: Any, folder: Path) -> None:
    """Fields of JSON, files of JSON and csv, and several parts of one name."""
    images = [
        ("images", (name, (folder / name).read_bytes(), "image/png")) for name in ("red.png", "green.png")
    ]
    common = [
        ("clip", ("dark.mp4", (folder / "dark.mp4").read_bytes(), "video/mp4")),
        ("text", ("text.json", json.dumps(all_inputs["text"]), "application/json")),
    ]
    fields = [(name, (None, json.dumps(all_inputs[name]))) for name in ("sensor", "person", "history")]
    files = [
        ("sensor", ("sensor.csv", b"y,x\n0.5,1\n1,\n2,2\n", "text/csv")),
        ("person", ("person.json", json.dumps(TABLE), "application/octet-stream")),
        ("history", ("history.json", json.dumps(all_inputs["history"]), "application/json")),
    ]
    for parts in (fields, files):
        response = client.post("/predict", files=[*common, *images, *parts])
        assert response.status_code == 200, response.text
        assert response.json() == answer


def test_the_command_line(model: Predictor, all_inputs: dict[str, Any], answer: Any, folder: Path) -> None:
    (folder / "text.json").write_text(json.dumps(all_inputs["text"]))
    (folder / "sensor.csv").write_text("x,y\n1,.5\n,1\n2,2\n")
    given = parse_values(
        [
            f"clip=@{folder}/dark.mp4",
            f"sensor=@{folder}/sensor.csv",
            f"person={json.dumps(TABLE)}",
            f"history={json.dumps(all_inputs['history'])}",
            f"images=@{folder}/red.png",
            f"images=@{folder}/green.png",
            f"text=@{folder}/text.json",
        ]
    )
    inputs = model.row_adapter.inputs
    [found] = model.predict([to_row(given, inputs)])
    assert found["outputs"]["answer"]["scores"] == pytest.approx(
        answer["outputs"]["answer"]["scores"], abs=1e-5
    )
    assert found["inputs_used"] == ALL
    alone = parse_values(
        [f"images=@{folder}/red.png", "text=a", f"sensor={json.dumps(all_inputs['sensor'])}"]
    )
    values = to_row(alone, inputs)
    assert values["images"] == [(folder / "red.png").read_bytes()]
    assert values["sensor"] == all_inputs["sensor"]
    uri = "data:text/csv,x%2Cy%0A1,2"
    assert to_row(parse_values([f"sensor={uri}"]), inputs) == {"sensor": uri}
    with pytest.raises(SpecError, match="text: given twice"):
        to_row(parse_values(["text=a", "text=b"]), inputs)
    with pytest.raises(SpecError, match="person: invalid JSON"):
        to_row(parse_values(["person={"]), inputs)


def test_the_client_sends_a_form(
    client: TestClient, all_inputs: dict[str, Any], answer: Any, folder: Path
) -> None:
    images = [(folder / name).read_bytes() for name in ("red.png", "green.png")]
    files = {"clip": (folder / "dark.mp4").read_bytes(), "images": http.MultipleValues(images)}
    values = {**files, **{name: all_inputs[name] for name in ("sensor", "person", "history", "text")}}
    assert client.post("/predict", files=http.multipart_fields(values)).json() == answer


def test_the_python_function(model: Predictor, all_inputs: dict[str, Any], answer: Any, folder: Path) -> None:
    from mlflow.models.utils import _enforce_schema

    function = FusedPythonModel()
    function.predictor = model
    images = [(folder / name).read_bytes() for name in ("red.png", "green.png")]
    row = {
        **all_inputs,
        "clip": (folder / "dark.mp4").read_bytes(),
        "images": images,
        "text": "dark or bright?",
    }
    table = pd.DataFrame([row, {**dict.fromkeys(row), "text": "dark?"}])
    checked = _enforce_schema(table, signature(model.job).inputs)
    table["sensor"] = [np.array(all_inputs["sensor"], dtype=float), None]
    for frame in (table, checked):
        found = function.predict(None, frame)  # type: ignore[arg-type]
        assert list(found.columns) == ["answer/label", "answer/scores", "inputs_used"]
        assert list(found["inputs_used"]) == [ALL, ["text"]]
        words = answer["outputs"]["answer"]["scores"]  # the same text, as one
        assert found["answer/scores"][0] == pytest.approx(words, abs=1e-5)


def test_the_examples_of_the_document_are_valid(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        response = client.post("/predict", json=example["value"])
        assert response.status_code == 200, response.text
    given = client.post("/predict", json=content["examples"]["one"]["value"]).json()
    assert given["inputs_used"] == ALL
    schema = described["components"]["schemas"]["Inputs"]
    assert schema["required"] == ["text"]
    assert schema["properties"]["person"]["type"] == ["object", "null"]
    assert schema["properties"]["person"]["properties"].keys() == {"age", "city"}
    assert schema["properties"]["images"]["maxItems"] == 3
    assert "taken from clip if left out" in schema["properties"]["sound"]["description"]


def test_the_schema_accepts_valid_requests(client: TestClient, all_inputs: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/Inputs", "components": described["components"]}
    jsonschema.validate(all_inputs, schema)
    for wrong in ({"sensor": [[1]]}, {"person": {"age": "old"}}, {"history": "a"}, {"images": b64(b"")}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**all_inputs, **wrong}, schema)


@pytest.mark.parametrize(
    ("inputs", "status", "expected"),
    [
        ({"sensor": [[1]]}, 422, "sensor: 1 channel, but this input has 2 (x, y)"),
        ({"sensor": {"b64": "*"}}, 400, "sensor.b64: not base64"),
        ({"sensor": "x.csv"}, 422, "sensor: expected a list of values for each channel, or a file"),
        ({"person": {"agee": 1}}, 422, "person: 'agee': not a column of this input; did you mean age?"),
        ({"age": 1}, 400, "age: not an input of this model, but a column of `person`: give {"),
        ({"person": []}, 422, "person: expected a mapping"),
        ({"history": "a"}, 422, "history: expected a list of items"),
        ({"images": b64(b"a")}, 400, "images: must be a list of up to 3 values, not this object"),
        ({"images": [b64(b"a")] * 4}, 422, "images: 4 values exceed the maximum of 3"),
        ({"images": [b64(b"a")]}, 422, "images: not a readable image"),
        ({"images": [None, "a"]}, 400, "images: a file must be"),
        ({"clip": b64(b"a")}, 422, "clip: not a readable video"),
        ({"clip": b64(make_clip()), "sound": b64(b"a")}, 422, "sound: not a readable audio file"),
    ],
)
def test_errors_name_the_input(client: TestClient, inputs: Any, status: int, expected: str) -> None:
    response = client.post("/predict", json={"inputs": {"text": "a", **inputs}})
    found = problem_of(response, status, expected)
    assert found["input"] in inputs


@pytest.mark.parametrize(
    ("part", "status", "expected"),
    [
        (("person", (None, "{")), 400, "person: the part is not JSON"),
        (("person", (None, '{"age": NaN}')), 400, "person: the part is not JSON: NaN is not a JSON number"),
        (
            ("sensor", ("a.png", b"a", "image/png")),
            415,
            "sensor: image/png is not supported; send application/json,",
        ),
        (("sensor", ("a.csv", b"\xff\xfe", "text/csv")), 422, "sensor: neither parquet nor UTF-8 text"),
        (("clip", (None, "a.mp4")), 400, "clip: must be a file, not a text"),
    ],
)
def test_errors_name_the_part(client: TestClient, part: Any, status: int, expected: str) -> None:
    assert (
        problem_of(client.post("/predict", files=[("text", (None, "a")), part]), status, expected)["input"]
        == part[0]
    )


def test_a_name_given_twice(client: TestClient) -> None:
    for name, value in (("text", "a"), ("person", "{}")):
        parts = [("text", (None, "a"))] if name != "text" else []
        response = client.post("/predict", files=[*parts, (name, (None, value)), (name, (None, value))])
        problem_of(response, 400, f"{name}: given twice")
    image = ("images", ("a.png", b"a", "image/png"))
    problem_of(
        client.post("/predict", files=[("text", (None, "a")), *[image] * 4]),
        422,
        "4 values exceed the maximum of 3",
    )


def test_empty_fields_of_a_form_are_absent(client: TestClient) -> None:
    names = ("clip", "sensor", "person", "history", "images")
    response = client.post("/predict", files=[("text", (None, "a")), *((name, (None, "")) for name in names)])
    assert response.json()["inputs_used"] == ["text"], response.text


def test_mutated_bodies(model: Predictor, all_inputs: dict[str, Any]) -> None:
    seeds = [f"0/{number}" for number in range(60)]
    assert asyncio.run(hostile_requests.send_all(model, all_inputs, seeds)) == 0

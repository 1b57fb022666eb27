"""Explanations over HTTP: their content, limits, and that predictions do not wait for them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from endpoints import problem_of
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serving import engine as serving
from rayfuse.serving import protocol
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.protocol import JSON, ModelSignature

Build = Callable[..., TestClient]


def predict(client: TestClient, body: dict[str, Any]) -> Any:
    return client.post("/predict", json=body)


def test_a_response_has_explanations(client: TestClient, all_inputs: dict[str, Any]) -> None:
    reply = predict(client, {"inputs": {**all_inputs, "audio": None}, "explain": True}).json()
    found = reply["explain"]["tasks"]["answer"]
    assert list(found["contributions"]) == reply["inputs_used"] == ["image", "text"]
    assert found["score"] == "probability"
    gained = found["value"] - found["base_value"]
    assert sum(found["contributions"].values()) == pytest.approx(gained, abs=1e-3)
    assert found["value"] == pytest.approx(max(reply["outputs"]["answer"]["scores"].values()), abs=1e-3)
    assert len(found["saliency"]["image"]) == len(found["saliency"]["image"][0]) == 8


def test_explanations_are_only_sent_on_request(client: TestClient, all_inputs: dict[str, Any]) -> None:
    without = predict(client, {"inputs": all_inputs}).json()
    assert predict(client, {"inputs": all_inputs, "explain": False}).json() == without
    assert set(without) == {"outputs", "inputs_used", "model"}
    explained = predict(client, {"inputs": all_inputs, "explain": True}).json()
    assert explained["outputs"]["answer"]["label"] == without["outputs"]["answer"]["label"]


def test_several_instances_are_explained(client: TestClient, all_inputs: dict[str, Any]) -> None:
    body = {"instances": [{"inputs": all_inputs}, {"inputs": {**all_inputs, "audio": None}}], "explain": True}
    first, second = predict(client, body).json()["predictions"]
    assert set(first["explain"]["tasks"]["answer"]["contributions"]) == {"image", "text", "audio"}
    assert set(second["explain"]["tasks"]["answer"]["contributions"]) == {"image", "text"}


def test_a_form_requests_explanations_by_a_field(
    client: TestClient, all_inputs: dict[str, Any], png: bytes
) -> None:
    files = {"image": ("a.png", png)}
    for value, explained in (("true", True), ("True", True), ("false", False), ("", False)):
        reply = client.post(
            "/predict", data={"text": all_inputs["text"], "explain": value}, files=files
        ).json()
        assert ("explain" in reply) == explained, value
    response = client.post("/predict", data={"text": "hi", "explain": "maybe"}, files=files)
    problem_of(response, 400, "explain: must be true or false, not maybe")


@pytest.mark.parametrize("value", [1, "true", None, [], {}])
def test_explain_must_be_a_boolean(client: TestClient, all_inputs: dict[str, Any], value: Any) -> None:
    problem_of(
        predict(client, {"inputs": all_inputs, "explain": value}), 400, "explain: must be true or false"
    )


def test_unknown_members_are_rejected(client: TestClient, all_inputs: dict[str, Any]) -> None:
    problem_of(
        predict(client, {"inputs": all_inputs, "explainn": True}),
        400,
        "explainn: unknown member; did you mean explain",
    )
    problem_of(predict(client, {"instances": [{"inputs": all_inputs, "explain": True}]}), 400)
    problem_of(predict(client, {"explain": True}), 400, 'send either "inputs" or "instances"')


def test_an_input_of_that_name_is_the_input(predictor: Predictor) -> None:
    text, modality = predictor.job.inputs["text"], predictor.preprocessor.modalities["text"]
    reads = ModelSignature({"explain": text}, {"explain": modality})
    body = b'--x\r\nContent-Disposition: form-data; name="explain"\r\n\r\nplease\r\n--x--\r\n'
    parsed = protocol.parse(body, "multipart/form-data; boundary=x", reads)
    assert (parsed.instances, parsed.explain) == ([{"explain": "please"}], False)
    parsed = protocol.parse(b'{"inputs": {"explain": "please"}, "explain": true}', JSON, reads)
    assert (parsed.instances, parsed.explain) == ([{"explain": "please"}], True)


def test_too_many_inputs_or_instances_are_rejected(
    client: TestClient, all_inputs: dict[str, Any], predictor: Predictor
) -> None:
    several = {"instances": [{"inputs": all_inputs}] * (serving.MAX_EXPLAIN_INSTANCES + 1)}
    problem_of(predict(client, {**several, "explain": True}), 413, "17 exceeds the maximum of 16")
    many = {f"input{i}": predictor.job.inputs["text"] for i in range(9)}
    modalities = dict.fromkeys(many, predictor.preprocessor.modalities["text"])
    parsed = protocol.PredictRequest([{"input0": "x"}], is_batch=False, explain=True)
    with pytest.raises(ProblemError, match="512 subsets") as problem:
        serving.check_explain_request(parsed, ModelSignature(many, modalities))
    assert problem.value.status == 422


def test_invalid_inputs_are_named_with_explain(client: TestClient, all_inputs: dict[str, Any]) -> None:
    response = predict(client, {"inputs": {**all_inputs, "image": {"b64": ""}}, "explain": True})
    assert problem_of(response, 422)["input"] == "image"


@pytest.fixture
def held(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Block explanations until the event is set."""
    free, answer = threading.Event(), predictor.predict_samples

    def hold(samples: Any, explain: bool = False) -> Any:
        if explain:
            assert free.wait(20)
        return answer(samples, explain)

    monkeypatch.setattr(predictor, "predict_samples", hold)
    return free


def test_explanations_do_not_block_predictions_and_are_limited(
    held: threading.Event, build: Build, all_inputs: dict[str, Any]
) -> None:
    client = build(
        batch_wait_timeout=0.0, max_batch_size=8, max_queued_requests=10
    )  # fewer than an explanation takes passes
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(predict, client, {"inputs": all_inputs, "explain": True})
        try:
            deadline = time.monotonic() + 10
            while not client.engine.active_explain_passes and time.monotonic() < deadline:  # type: ignore[attr-defined]
                time.sleep(0.005)
            assert predict(client, {"inputs": all_inputs}).status_code == 200
            second = predict(client, {"inputs": all_inputs, "explain": True})
            problem_of(second, 503, "too many explanations are in progress")
            assert second.headers["retry-after"]
        finally:
            held.set()
        assert "explain" in first.result(20).json()
    assert client.engine.active_explain_passes == 0  # type: ignore[attr-defined]
    assert "explain" in predict(client, {"inputs": all_inputs, "explain": True}).json()


def test_openapi_describes_explanations(client: TestClient, all_inputs: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert schemas["Request"]["properties"]["explain"]["type"] == "boolean"
    form = described["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["explain"]["type"] == "boolean"
    reply = predict(client, {"inputs": all_inputs, "explain": True}).json()
    root = {"$ref": "#/components/schemas/Response", "components": described["components"]}
    jsonschema.validate(reply, root)

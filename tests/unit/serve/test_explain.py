"""Answers that say why, over HTTP: what they say, what is refused, and that others do not wait for them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from endpoints import refused
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serve import engine as serving
from rayfuse.serve import protocol
from rayfuse.serve.problems import Problem
from rayfuse.serve.protocol import JSON, Reads

Build = Callable[..., TestClient]


def ask(client: TestClient, body: dict[str, Any]) -> Any:
    return client.post("/predict", json=body)


def test_an_answer_says_why(client: TestClient, whole: dict[str, Any]) -> None:
    reply = ask(client, {"inputs": {**whole, "audio": None}, "explain": True}).json()
    found = reply["explain"]["tasks"]["answer"]
    assert list(found["contributions"]) == reply["inputs_used"] == ["image", "text"]
    assert found["score"] == "probability"
    gained = found["value"] - found["base"]
    assert sum(found["contributions"].values()) == pytest.approx(gained, abs=1e-3)
    assert found["value"] == pytest.approx(max(reply["outputs"]["answer"]["scores"].values()), abs=1e-3)
    assert len(found["saliency"]["image"]) == len(found["saliency"]["image"][0]) == 8


def test_only_those_who_ask_are_told(client: TestClient, whole: dict[str, Any]) -> None:
    without = ask(client, {"inputs": whole}).json()
    assert ask(client, {"inputs": whole, "explain": False}).json() == without
    assert set(without) == {"outputs", "inputs_used", "model"}
    explained = ask(client, {"inputs": whole, "explain": True}).json()
    assert explained["outputs"]["answer"]["label"] == without["outputs"]["answer"]["label"]


def test_each_of_several_is_explained(client: TestClient, whole: dict[str, Any]) -> None:
    body = {"instances": [{"inputs": whole}, {"inputs": {**whole, "audio": None}}], "explain": True}
    first, second = ask(client, body).json()["predictions"]
    assert set(first["explain"]["tasks"]["answer"]["contributions"]) == {"image", "text", "audio"}
    assert set(second["explain"]["tasks"]["answer"]["contributions"]) == {"image", "text"}


def test_a_form_asks_by_a_field(client: TestClient, whole: dict[str, Any], picture: bytes) -> None:
    files = {"image": ("a.png", picture)}
    for said, told in (("true", True), ("True", True), ("false", False), ("", False)):
        reply = client.post("/predict", data={"text": whole["text"], "explain": said}, files=files).json()
        assert ("explain" in reply) == told, said
    response = client.post("/predict", data={"text": "hi", "explain": "maybe"}, files=files)
    refused(response, 400, "explain: true or false belongs here, not maybe")


@pytest.mark.parametrize("value", [1, "true", None, [], {}])
def test_what_is_no_boolean_is_refused(client: TestClient, whole: dict[str, Any], value: Any) -> None:
    refused(ask(client, {"inputs": whole, "explain": value}), 400, "explain: true or false belongs here")


def test_other_members_are_still_refused(client: TestClient, whole: dict[str, Any]) -> None:
    refused(
        ask(client, {"inputs": whole, "explian": True}), 400, "explian: unknown member; did you mean explain"
    )
    refused(ask(client, {"instances": [{"inputs": whole, "explain": True}]}), 400)
    refused(ask(client, {"explain": True}), 400, 'give either "inputs" or "instances"')


def test_an_input_of_that_name_is_the_input(predictor: Predictor) -> None:
    text, modality = predictor.job.inputs["text"], predictor.maker.modalities["text"]
    reads = Reads({"explain": text}, {"explain": modality})
    body = b'--x\r\nContent-Disposition: form-data; name="explain"\r\n\r\nplease\r\n--x--\r\n'
    asked = protocol.parse(body, "multipart/form-data; boundary=x", reads)
    assert (asked.instances, asked.explain) == ([{"explain": "please"}], False)
    asked = protocol.parse(b'{"inputs": {"explain": "please"}, "explain": true}', JSON, reads)
    assert (asked.instances, asked.explain) == ([{"explain": "please"}], True)


def test_many_inputs_and_many_instances_are_refused(
    client: TestClient, whole: dict[str, Any], predictor: Predictor
) -> None:
    several = {"instances": [{"inputs": whole}] * (serving.MAX_EXPLAINED + 1)}
    refused(ask(client, {**several, "explain": True}), 413, "17 of them to explain; send at most 16")
    many = {f"input{i}": predictor.job.inputs["text"] for i in range(9)}
    modalities = dict.fromkeys(many, predictor.maker.modalities["text"])
    asked = protocol.Asked([{"input0": "x"}], several=False, explain=True)
    with pytest.raises(Problem, match="512 subsets") as problem:
        serving._check_explained(asked, Reads(many, modalities))
    assert problem.value.status == 422


def test_a_broken_input_is_named_there_too(client: TestClient, whole: dict[str, Any]) -> None:
    response = ask(client, {"inputs": {**whole, "image": {"b64": ""}}, "explain": True})
    assert refused(response, 422)["input"] == "image"


@pytest.fixture
def held(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Explanations take until this is set."""
    free, answer = threading.Event(), predictor.answer

    def hold(samples: Any, explain: bool = False) -> Any:
        if explain:
            assert free.wait(20)
        return answer(samples, explain)

    monkeypatch.setattr(predictor, "answer", hold)
    return free


def test_others_do_not_wait_and_too_many_are_refused(
    held: threading.Event, build: Build, whole: dict[str, Any]
) -> None:
    client = build(wait=0.0, max_size=8, queue=10)  # fewer than an explanation takes passes
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, {"inputs": whole, "explain": True})
        try:
            deadline = time.monotonic() + 10
            while not client.engine.explaining and time.monotonic() < deadline:  # type: ignore[attr-defined]
                time.sleep(0.005)
            assert ask(client, {"inputs": whole}).status_code == 200
            second = ask(client, {"inputs": whole, "explain": True})
            refused(second, 503, "being explained already")
            assert second.headers["retry-after"]
        finally:
            held.set()
        assert "explain" in first.result(20).json()
    assert client.engine.explaining == 0  # type: ignore[attr-defined]
    assert "explain" in ask(client, {"inputs": whole, "explain": True}).json()


def test_the_description_tells_of_it(client: TestClient, whole: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert schemas["Request"]["properties"]["explain"]["type"] == "boolean"
    form = described["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["explain"]["type"] == "boolean"
    reply = ask(client, {"inputs": whole, "explain": True}).json()
    root = {"$ref": "#/components/schemas/Reply", "components": described["components"]}
    jsonschema.validate(reply, root)

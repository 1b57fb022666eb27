"""The application over a real model."""

import asyncio
import io
import json
import random
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from endpoints import b64, refused
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serve.settings import digest

Build = Callable[..., TestClient]


def ask(client: TestClient, inputs: Any, **options: Any) -> Any:
    return client.post("/predict", json={"inputs": inputs}, **options)


def test_json_is_answered_as_the_model_answers(
    client: TestClient, predictor: Predictor, whole: dict[str, Any], picture: bytes, clip: bytes
) -> None:
    [expected] = predictor.predict([{"image": picture, "audio": clip, "text": whole["text"]}])
    answer = ask(client, whole).json()
    assert answer["inputs_used"] == ["image", "text", "audio"]
    assert answer["model"] == {"name": "tiny", "version": 3}
    assert answer["outputs"]["answer"]["label"] == expected["outputs"]["answer"]["label"]
    for label, score in expected["outputs"]["answer"]["scores"].items():
        assert answer["outputs"]["answer"]["scores"][label] == pytest.approx(score, abs=1e-4)


def test_multipart_is_answered_as_json(
    client: TestClient, whole: dict[str, Any], picture: bytes, clip: bytes
) -> None:
    files = {"image": ("a.png", picture), "audio": ("a.wav", clip, "audio/wav")}
    response = client.post("/predict", data={"text": whole["text"]}, files=files)
    assert response.json() == ask(client, whole).json()


def test_an_optional_input_may_be_left_out(client: TestClient, whole: dict[str, Any]) -> None:
    without = ask(client, {**whole, "audio": None}).json()
    assert without["inputs_used"] == ["image", "text"]
    assert without["outputs"] != ask(client, whole).json()["outputs"]


def test_several_instances_are_answered_in_order(build: Build, whole: dict[str, Any]) -> None:
    client = build(max_size=4, wait=0.0)
    texts = [f"colour number {i}?" for i in range(11)]
    instances = [{"inputs": {**whole, "text": text}} for text in texts]
    reply = client.post("/predict", json={"instances": instances}).json()
    assert reply["model"]["name"] == "tiny"
    for text, found in zip(texts, reply["predictions"], strict=True):
        alone = ask(client, {**whole, "text": text}).json()
        assert found["inputs_used"] == alone["inputs_used"]
        assert found["outputs"]["answer"]["scores"] == pytest.approx(
            alone["outputs"]["answer"]["scores"], abs=1e-5
        )


def test_requests_at_the_same_time_share_a_batch_and_get_their_own_answers(
    build: Build, whole: dict[str, Any]
) -> None:
    client = build(max_size=8, wait=0.5)
    texts = [f"question {i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda text: ask(client, {**whole, "text": text}), texts))
    assert {response.headers["server-timing"].rpartition("desc=")[2] for response in responses} == {
        '"batch of 8"'
    }
    lonely = build(max_size=1, wait=0.0)
    for text, response in zip(texts, responses, strict=True):
        alone = ask(lonely, {**whole, "text": text}).json()
        assert response.json()["outputs"]["answer"]["scores"] == pytest.approx(
            alone["outputs"]["answer"]["scores"], abs=1e-5
        )


def test_a_required_input_must_be_there(client: TestClient) -> None:
    problem = refused(ask(client, {"text": "hi"}), 422, "image: missing")
    assert problem["input"] == "image"


@pytest.mark.parametrize("content", [b"", b"a text file", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_picture_is_named(client: TestClient, whole: dict[str, Any], content: bytes) -> None:
    assert refused(ask(client, {**whole, "image": b64(content)}), 422)["input"] == "image"


def silent_wave(rate: int = 8000, frames: bytes = b"") -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 1, rate, 0, "NONE", ""))
        writer.writeframes(frames)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"a text file", silent_wave()])
def test_a_broken_clip_is_named(client: TestClient, whole: dict[str, Any], content: bytes) -> None:
    assert refused(ask(client, {**whole, "audio": b64(content)}), 422)["input"] == "audio"


def test_extreme_samples_are_the_callers_problem(
    client: TestClient, whole: dict[str, Any], tmp_path: Any
) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "huge.wav", np.full(800, 3e38, dtype=np.float32), 8000, subtype="FLOAT")
    response = ask(client, {**whole, "audio": b64((tmp_path / "huge.wav").read_bytes())})
    assert response.status_code in (200, 422)


@pytest.mark.parametrize("text", [5, 1e300, True, ["a", 5], {"b64": "aGk="}, {}])
def test_a_text_of_another_type_is_named(client: TestClient, whole: dict[str, Any], text: Any) -> None:
    assert refused(ask(client, {**whole, "text": text}), 422)["input"] == "text"


def test_a_url_into_this_machine_is_not_fetched(client: TestClient, whole: dict[str, Any]) -> None:
    response = ask(client, {**whole, "image": {"url": "http://127.0.0.1:1/x.png"}})
    assert refused(response, 422, "not on the public internet")["input"] == "image"


def test_a_body_over_the_limit_is_refused(build: Build, whole: dict[str, Any]) -> None:
    client = build(body=1000)
    assert refused(ask(client, {**whole, "text": "x" * 2000}), 413, "1000 bytes")


def test_a_body_without_a_length_is_counted_as_it_comes(build: Build) -> None:
    read = []

    def body() -> Iterator[bytes]:
        for _ in range(100):
            read.append(1)
            yield b"x" * 100

    response = build(body=1000).post("/predict", content=body(), headers={"content-type": "application/json"})
    refused(response, 413)


def test_keys_open_the_endpoint_to_others(build: Build, whole: dict[str, Any]) -> None:
    client = build(host="203.0.113.9", keys=(digest("right"), digest("also")))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "é"},
    ):
        response = ask(client, whole, headers={k: v.encode() for k, v in headers.items()})
        refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("right", "also"):
        assert ask(client, whole, headers={"authorization": f"bearer {key}"}).status_code == 200
    assert client.get("/v2/health/ready").status_code == 200


def test_without_keys_only_this_machine_is_answered(build: Build, whole: dict[str, Any]) -> None:
    refused(ask(build(host="203.0.113.9"), whole), 403, "auth.keys")
    assert ask(build(host="::1"), whole).status_code == 200


def slow(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the model until the event is set."""
    go = threading.Event()
    batcher = client.engine._batcher  # type: ignore[attr-defined]
    run = batcher.run
    monkeypatch.setattr(batcher, "run", lambda items: (go.wait(10), run(items))[1])
    return go


def test_one_request_more_than_may_wait_is_refused(
    build: Build, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = build(queue=1, max_size=1, wait=0.0)
    go = slow(client, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(ask, client, whole) for _ in range(2)]
        while client.engine.active < 2:  # type: ignore[attr-defined]
            pass
        response = ask(client, whole)
        go.set()
        assert [one.result().status_code for one in pending] == [200, 200]
    refused(response, 503, "1 requests are waiting")
    assert response.headers["retry-after"] == "1"
    assert ask(client, whole).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(
    build: Build, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = build(timeout=0.1)
    go = slow(client, monkeypatch)
    refused(ask(client, whole), 504, "0.1 s")
    go.set()
    client.engine.change(client.engine.settings.__class__())  # type: ignore[attr-defined]
    assert ask(client, whole).status_code == 200


def test_a_failing_model_is_a_bare_500_and_in_the_end_unhealthy(
    client: TestClient,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Any) -> Any:
        raise ValueError("secret detail")

    monkeypatch.setattr(client.engine._batcher, "run", fail)  # type: ignore[attr-defined]
    for _ in range(5):
        response = ask(client, whole)
        assert "secret" not in refused(response, 500)["detail"]
    assert "secret detail" in caplog.text
    assert client.get("/v2/health/live").json() == {"live": True}
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)


def test_what_is_not_there_says_what_is(client: TestClient) -> None:
    refused(client.get("/nothing"), 404, "POST /predict")
    refused(client.get("/predict"), 405, "POST /predict")
    refused(client.get("/docs/nothing.js"), 404)


def test_health_says_yes(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_nothing_that_a_caller_sends_is_a_500(client: TestClient, whole: dict[str, Any]) -> None:
    chance = random.Random(0)
    odd = [
        None,
        True,
        0,
        -1,
        1e308,
        "",
        "x",
        [],
        {},
        [[]],
        {"b64": ""},
        {"b64": None},
        {"url": "x"},
        "\U0001f600",
    ]
    for _ in range(300):
        inputs: Any = {name: chance.choice([value, *odd]) for name, value in whole.items()}
        content: Any = (
            {"inputs": inputs} if chance.random() < 0.8 else {"instances": [{"inputs": inputs}, {}]}
        )
        body = json.dumps(chance.choice([content, content, chance.choice(odd)]))
        response = client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 422), (inputs, response.text)
        if response.status_code != 200:
            refused(response, response.status_code)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_random_and_damaged_bytes_are_refused(
    client: TestClient, kind: str, whole: dict[str, Any], picture: bytes
) -> None:
    chance = random.Random(1)
    good = client.build_request("POST", "/predict", data={"text": "hi"}, files={"image": ("a.png", picture)})
    good_form = good.read().replace(good.headers["content-type"].partition("boundary=")[2].encode(), b"x")
    good_json = client.build_request("POST", "/predict", json={"inputs": whole}).read()
    source = good_json if "json" in kind else good_form
    for _ in range(200):
        body = bytearray(source if chance.random() < 0.8 else chance.randbytes(chance.randrange(300)))
        for _ in range(chance.randrange(1, 8)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        response = client.post("/predict", content=bytes(body), headers={"content-type": kind})
        assert response.status_code in (200, 400, 415, 422), (bytes(body), response.text)


def test_changed_settings_count_at_once(client: TestClient, whole: dict[str, Any]) -> None:
    engine = client.engine  # type: ignore[attr-defined]
    engine.change(engine.settings.__class__(body=10))
    refused(ask(client, whole), 413)


def test_a_slow_body_is_the_callers_fault(build: Build) -> None:
    client = build(timeout=0.05)

    async def never() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    async def post() -> int:
        sent: list[Any] = []
        chunks = never()

        async def receive() -> Any:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        await client.app({**scope, "query_string": b"", "root_path": ""}, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(post()) == 408

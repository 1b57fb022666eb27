"""The ASGI application with a real model."""

import asyncio
import io
import json
import random
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from endpoints import b64, problem_of
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serving.settings import hash_api_key

Build = Callable[..., TestClient]


def predict(client: TestClient, inputs: Any, **options: Any) -> Any:
    return client.post("/predict", json={"inputs": inputs}, **options)


def test_json_responses_equal_the_predictions_of_the_model(
    client: TestClient, predictor: Predictor, all_inputs: dict[str, Any], png: bytes, clip: bytes
) -> None:
    [expected] = predictor.predict([{"image": png, "audio": clip, "text": all_inputs["text"]}])
    answer = predict(client, all_inputs).json()
    assert answer["inputs_used"] == ["image", "text", "audio"]
    assert answer["model"] == {"name": "tiny", "version": 3}
    assert answer["outputs"]["answer"]["label"] == expected["outputs"]["answer"]["label"]
    for label, score in expected["outputs"]["answer"]["scores"].items():
        assert answer["outputs"]["answer"]["scores"][label] == pytest.approx(score, abs=1e-4)


def test_multipart_responses_equal_json_responses(
    client: TestClient, all_inputs: dict[str, Any], png: bytes, clip: bytes
) -> None:
    files = {"image": ("a.png", png), "audio": ("a.wav", clip, "audio/wav")}
    response = client.post("/predict", data={"text": all_inputs["text"]}, files=files)
    assert response.json() == predict(client, all_inputs).json()


def test_an_optional_input_may_be_left_out(client: TestClient, all_inputs: dict[str, Any]) -> None:
    without = predict(client, {**all_inputs, "audio": None}).json()
    assert without["inputs_used"] == ["image", "text"]
    assert without["outputs"] != predict(client, all_inputs).json()["outputs"]


def test_predictions_of_several_instances_are_in_order(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(max_batch_size=4, batch_wait_timeout=0.0)
    texts = [f"colour number {i}?" for i in range(11)]
    instances = [{"inputs": {**all_inputs, "text": text}} for text in texts]
    reply = client.post("/predict", json={"instances": instances}).json()
    assert reply["model"]["name"] == "tiny"
    for text, found in zip(texts, reply["predictions"], strict=True):
        alone = predict(client, {**all_inputs, "text": text}).json()
        assert found["inputs_used"] == alone["inputs_used"]
        assert found["outputs"]["answer"]["scores"] == pytest.approx(
            alone["outputs"]["answer"]["scores"], abs=1e-5
        )


def test_concurrent_requests_share_a_batch(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(max_batch_size=8, batch_wait_timeout=0.5)
    texts = [f"question {i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda text: predict(client, {**all_inputs, "text": text}), texts))
    assert {response.headers["server-timing"].rpartition("desc=")[2] for response in responses} == {
        '"batch of 8"'
    }
    lonely = build(max_batch_size=1, batch_wait_timeout=0.0)
    for text, response in zip(texts, responses, strict=True):
        alone = predict(lonely, {**all_inputs, "text": text}).json()
        assert response.json()["outputs"]["answer"]["scores"] == pytest.approx(
            alone["outputs"]["answer"]["scores"], abs=1e-5
        )


def test_a_missing_required_input_is_rejected(client: TestClient) -> None:
    problem = problem_of(predict(client, {"text": "hi"}), 422, "image: missing")
    assert problem["input"] == "image"


@pytest.mark.parametrize("content", [b"", b"a text file", b"\x89PNG\r\n\x1a\n broken"])
def test_a_corrupt_image_is_named(client: TestClient, all_inputs: dict[str, Any], content: bytes) -> None:
    assert problem_of(predict(client, {**all_inputs, "image": b64(content)}), 422)["input"] == "image"


def silent_wave(rate: int = 8000, frames: bytes = b"") -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 1, rate, 0, "NONE", ""))
        writer.writeframes(frames)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"a text file", silent_wave()])
def test_a_corrupt_clip_is_named(client: TestClient, all_inputs: dict[str, Any], content: bytes) -> None:
    assert problem_of(predict(client, {**all_inputs, "audio": b64(content)}), 422)["input"] == "audio"


def test_extreme_audio_samples_are_never_a_500(
    client: TestClient, all_inputs: dict[str, Any], tmp_path: Any
) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "huge.wav", np.full(800, 3e38, dtype=np.float32), 8000, subtype="FLOAT")
    response = predict(client, {**all_inputs, "audio": b64((tmp_path / "huge.wav").read_bytes())})
    assert response.status_code in (200, 422)


@pytest.mark.parametrize("text", [5, 1e300, True, ["a", 5], {"b64": "aGk="}, {}])
def test_a_text_of_another_type_is_named(client: TestClient, all_inputs: dict[str, Any], text: Any) -> None:
    assert problem_of(predict(client, {**all_inputs, "text": text}), 422)["input"] == "text"


def test_loopback_urls_are_not_fetched(client: TestClient, all_inputs: dict[str, Any]) -> None:
    response = predict(client, {**all_inputs, "image": {"url": "http://127.0.0.1:1/x.png"}})
    assert problem_of(response, 422, "does not have a public address")["input"] == "image"


def test_a_body_above_the_limit_is_rejected(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(max_body_size=1000)
    assert problem_of(predict(client, {**all_inputs, "text": "x" * 2000}), 413, "1000 bytes")


def test_a_body_without_content_length_is_limited(build: Build) -> None:
    read = []

    def body() -> Iterator[bytes]:
        for _ in range(100):
            read.append(1)
            yield b"x" * 100

    response = build(max_body_size=1000).post(
        "/predict", content=body(), headers={"content-type": "application/json"}
    )
    problem_of(response, 413)


def test_api_keys_allow_remote_clients(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(host="203.0.113.9", keys=(hash_api_key("right"), hash_api_key("also")))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "é"},
    ):
        response = predict(client, all_inputs, headers={k: v.encode() for k, v in headers.items()})
        problem_of(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("right", "also"):
        assert predict(client, all_inputs, headers={"authorization": f"bearer {key}"}).status_code == 200
    assert client.get("/v2/health/ready").status_code == 200


PATHS = ["/", "/docs", "/openapi.json", "/predict", "/v2/health/live", "/v2/health/ready", "/other"]
LOCAL_HOSTS = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    "localhost:1",
    "LOCALHOST:8000",
    "127.0.0.1:65535",
    "[::1]:8000",
]
OTHER_HOSTS = [
    "evil.example.com", "evil.example.com:8000", "127.0.0.1.evil.example.com", "localhost.evil.example.com", "a@localhost",
    "127.0.0.2", "0.0.0.0", "[::]", "::1", "localhost.", "localhost:", "localhost:80 evil", "", "[::ffff:127.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_without_keys_only_loopback_clients_are_allowed(build: Build, path: str) -> None:
    problem_of(build(host="203.0.113.9").get(path), 403, "auth.keys")


def test_without_keys_loopback_clients_are_allowed(build: Build, all_inputs: dict[str, Any]) -> None:
    for host in ("127.0.0.1", "::1"):
        assert predict(build(host=host), all_inputs).status_code == 200


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_without_keys_hosts_of_this_machine_are_allowed(
    client: TestClient, all_inputs: dict[str, Any], host: str
) -> None:
    assert predict(client, all_inputs, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_without_keys_other_hosts_are_rejected(
    client: TestClient, all_inputs: dict[str, Any], host: str
) -> None:
    """The page of a name that resolves to 127.0.0.1 sends that name (DNS rebinding)."""
    problem_of(predict(client, all_inputs, headers={"Host": host}), 421, "Host: ")


@pytest.mark.parametrize("path", PATHS)
def test_without_keys_other_hosts_read_nothing(build: Build, path: str) -> None:
    client = build(cors_origins=("*",))
    problem_of(client.get(path, headers={"Host": "evil.example.com"}), 421, "evil.example.com")
    preflight = client.options(path, headers={**PREFLIGHT, "Host": "evil.example.com"})
    problem_of(preflight, 421)


def test_all_hosts_of_a_request_must_be_local(client: TestClient) -> None:
    hosts = [("Host", "localhost"), ("Host", "evil.example.com")]
    problem_of(client.get("/v2/health/live", headers=hosts), 421)


def test_with_keys_any_host_is_allowed(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(host="203.0.113.9", keys=(hash_api_key("key"),))
    headers = {"Host": "api.example.com", "Authorization": "Bearer key"}
    assert predict(client, all_inputs, headers=headers).status_code == 200


def slow(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the model until the event is set."""
    go = threading.Event()
    batcher = client.engine.batcher  # type: ignore[attr-defined]
    run = batcher.run
    monkeypatch.setattr(batcher, "run", lambda items: (go.wait(10), run(items))[1])
    return go


def test_requests_above_the_queue_limit_are_rejected(
    build: Build, all_inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = build(max_queued_requests=1, max_batch_size=1, batch_wait_timeout=0.0)
    go = slow(client, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(predict, client, all_inputs) for _ in range(2)]
        while client.engine.active_requests < 2:  # type: ignore[attr-defined]
            pass
        response = predict(client, all_inputs)
        go.set()
        assert [one.result().status_code for one in pending] == [200, 200]
    problem_of(response, 503, "1 requests are queued already")
    assert response.headers["retry-after"] == "1"
    assert predict(client, all_inputs).status_code == 200


def test_requests_time_out(build: Build, all_inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client = build(request_timeout=0.1)
    go = slow(client, monkeypatch)
    problem_of(predict(client, all_inputs), 504, "0.1 s")
    go.set()
    client.engine.update_settings(client.engine.settings.__class__())  # type: ignore[attr-defined]
    assert predict(client, all_inputs).status_code == 200


def test_a_failing_model_is_a_500_and_becomes_unhealthy(
    client: TestClient,
    all_inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Any) -> Any:
        raise ValueError("secret detail")

    monkeypatch.setattr(client.engine.batcher, "run", fail)  # type: ignore[attr-defined]
    for _ in range(5):
        response = predict(client, all_inputs)
        assert "secret" not in problem_of(response, 500)["detail"]
    assert "secret detail" in caplog.text
    assert client.get("/v2/health/live").json() == {"live": True}
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)


def test_unknown_paths_list_the_routes(client: TestClient) -> None:
    problem_of(client.get("/nothing"), 404, "POST /predict")
    problem_of(client.get("/predict"), 405, "POST /predict")
    problem_of(client.get("/docs/nothing.js"), 404)


def test_health_is_ok(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_invalid_requests_are_never_a_500(client: TestClient, all_inputs: dict[str, Any]) -> None:
    rng = random.Random(0)
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
        inputs: Any = {name: rng.choice([value, *odd]) for name, value in all_inputs.items()}
        content: Any = {"inputs": inputs} if rng.random() < 0.8 else {"instances": [{"inputs": inputs}, {}]}
        body = json.dumps(rng.choice([content, content, rng.choice(odd)]))
        response = client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 422), (inputs, response.text)
        if response.status_code != 200:
            problem_of(response, response.status_code)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_random_and_damaged_bytes_are_rejected(
    client: TestClient, kind: str, all_inputs: dict[str, Any], png: bytes
) -> None:
    rng = random.Random(1)
    good = client.build_request("POST", "/predict", data={"text": "hi"}, files={"image": ("a.png", png)})
    good_form = good.read().replace(good.headers["content-type"].partition("boundary=")[2].encode(), b"x")
    good_json = client.build_request("POST", "/predict", json={"inputs": all_inputs}).read()
    source = good_json if "json" in kind else good_form
    for _ in range(200):
        body = bytearray(source if rng.random() < 0.8 else rng.randbytes(rng.randrange(300)))
        for _ in range(rng.randrange(1, 8)):
            if body:
                body[rng.randrange(len(body))] = rng.randrange(256)
        response = client.post("/predict", content=bytes(body), headers={"content-type": kind})
        assert response.status_code in (200, 400, 415, 422), (bytes(body), response.text)


def test_changed_settings_apply_at_once(client: TestClient, all_inputs: dict[str, Any]) -> None:
    engine = client.engine  # type: ignore[attr-defined]
    engine.update_settings(engine.settings.__class__(max_body_size=10))
    problem_of(predict(client, all_inputs), 413)


APP = "https://app.example.com"
PREFLIGHT = {
    "Origin": APP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


@pytest.mark.parametrize(("origins", "expected"), [((APP,), APP), (("*",), "*")])
def test_pages_of_allowed_origins_may_call(
    build: Build, all_inputs: dict[str, Any], origins: tuple[str, ...], expected: str
) -> None:
    client = build(keys=(hash_api_key("key"),), cors_origins=origins, batch_wait_timeout=0.0)
    preflight = client.options("/predict", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == expected
    allowed = preflight.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed
    assert "content-type" in allowed
    for key, status in (("key", 200), ("other", 401)):  # the page can read errors too
        headers = {"Origin": APP, "Authorization": f"Bearer {key}"}
        response = predict(client, all_inputs, headers=headers)
        assert response.status_code == status
        assert response.headers["Access-Control-Allow-Origin"] == expected
    assert "Access-Control-Allow-Credentials" not in response.headers


def test_pages_of_other_origins_may_not_call(build: Build, all_inputs: dict[str, Any]) -> None:
    client = build(cors_origins=(APP,), batch_wait_timeout=0.0)
    for origin in ("https://evil.example.com", "http://app.example.com", "null"):
        assert client.options("/predict", headers={**PREFLIGHT, "Origin": origin}).status_code == 400
        response = predict(client, all_inputs, headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in response.headers


def test_cross_origin_requests_are_off_until_settings_allow_them(
    client: TestClient, all_inputs: dict[str, Any]
) -> None:
    assert client.options("/predict", headers=PREFLIGHT).status_code == 405
    headers = predict(client, all_inputs, headers={"Origin": APP}).headers
    assert not any(name.startswith("access-control") for name in headers)
    settings = client.engine.settings  # type: ignore[attr-defined]
    client.engine.update_settings(replace(settings, cors_origins=(APP,)))  # type: ignore[attr-defined]
    assert client.options("/predict", headers=PREFLIGHT).status_code == 200


def test_a_slow_body_is_a_client_error(build: Build) -> None:
    client = build(request_timeout=0.05)

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

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
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

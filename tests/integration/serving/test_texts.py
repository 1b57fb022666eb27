"""Endpoints of models with generation tasks: texts, streams, and the OpenAI protocol with its client."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import tiny_generation
import tiny_jobs
import tiny_language_models
import torch
from endpoints import b64, problem_of, serve_app_in_thread
from openai import OpenAI
from starlette.testclient import TestClient

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.stream import DecoderThread
from rayfuse.errors import DataError
from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine, warm_up
from rayfuse.serving.settings import Settings, hash_api_key
from rayfuse.spec.service import GenerationLimits

QUESTION = "which colour is it?"
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
Build = Callable[..., TestClient]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("texts")
    tiny_generation.make_rows(folder)
    tiny_language_models.randomize(tiny_language_models.qwen(folder / "qwen"))
    label = {"type": "classification", "column": "label"}
    options = {"tasks.label": label, "inputs.text.max_tokens": 32}
    job = tiny_generation.generation_job(folder, "qwen", **options)
    predictor = Predictor(tiny_jobs.make_model_folder(folder, 0, job=job))
    torch.manual_seed(0)
    torch.nn.init.normal_(predictor.model.tasks["answer"].projector.weight, std=0.3)  # type: ignore[union-attr]
    return predictor


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_jobs.write_image(tmp_path_factory.mktemp("image") / "a.png", "green").read_bytes()


@pytest.fixture(scope="module")
def build(predictor: Predictor) -> Iterator[Build]:
    """Return clients of applications with other settings and limits."""
    with ExitStack() as opened:

        def make(limits: dict[str, Any] | None = None, **settings: Any) -> TestClient:
            engine = make_engine(predictor, limits, **settings)
            opened.callback(engine.texts.close)
            client = TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000))
            client.engine = engine  # type: ignore[attr-defined]
            return opened.enter_context(client)

        yield make


def make_engine(
    predictor: Predictor, limits: dict[str, Any] | None = None, **settings: Any
) -> InferenceEngine:
    settings = {"model": "tiny", "version": 3, "batch_wait_timeout": 0.0, **settings}
    return InferenceEngine(predictor, Settings(**settings), generation=GenerationLimits(**(limits or {})))


@pytest.fixture(scope="module")
def client(build: Build) -> TestClient:
    return build()


@pytest.fixture(scope="module")
def engine(predictor: Predictor) -> Iterator[InferenceEngine]:
    engine = make_engine(predictor, max_queued_requests=40)
    yield engine
    engine.texts.close()


@pytest.fixture(scope="module")
def url(engine: InferenceEngine) -> Iterator[str]:
    with serve_app_in_thread(build_app(engine)) as address:
        yield address


@pytest.fixture(scope="module")
def chat(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Return the names and data of a stream's events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [part.split("\n") for part in response.text.strip().split("\n\n")]
    return [(head.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for head, data in parts]


def shown(text: str) -> str:
    """Return a text without white space and incomplete characters around it."""
    return text.strip("\N{REPLACEMENT CHARACTER} \n")


def image_part(content: bytes) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def user(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def test_concurrent_predictions_equal_those_of_the_model(
    client: TestClient, predictor: Predictor, png: bytes
) -> None:
    requests = [
        {
            key: value
            for key, value in (("text", f"{QUESTION}{'!' * i}"), ("image", png))
            if i % 3 or key == "text"
        }
        for i in range(12)
    ]
    bodies = [{k: b64(v) if k == "image" else v for k, v in one.items()} for one in requests]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda body: client.post("/predict", json={"inputs": body}), bodies))
    for request, response in zip(requests, responses, strict=True):
        [expected] = predictor.predict([request])
        found = response.json()
        assert found["outputs"]["answer"] == expected["outputs"]["answer"]
        assert found["outputs"]["label"]["label"] == expected["outputs"]["label"]["label"]
        assert list(found["outputs"]) == ["answer", "label"]
        assert found["inputs_used"] == expected["inputs_used"]
    together = client.post("/predict", json={"instances": [{"inputs": body} for body in bodies]}).json()
    assert [one["outputs"]["answer"] for one in together["predictions"]] == [
        response.json()["outputs"]["answer"] for response in responses
    ]


def test_a_stream_has_the_parts_of_the_text_and_then_the_response(client: TestClient, png: bytes) -> None:
    inputs = {"text": QUESTION, "image": b64(png)}
    plain = client.post("/predict", json={"inputs": inputs}).json()
    *parts, (last, prediction) = events(client.post("/predict", json={"inputs": inputs, "stream": True}))
    assert last == "prediction"
    assert prediction["outputs"]["answer"] == plain["outputs"]["answer"]
    assert prediction["model"] == {"name": "tiny", "version": 3}
    assert {name for name, _ in parts} == {"text"}
    assert {part["task"] for _, part in parts} == {"answer"}
    assert shown("".join(part["text"] for _, part in parts)) == shown(plain["outputs"]["answer"]["text"])
    form = client.post("/predict", data={"text": QUESTION, "stream": "true"}, files={"image": png})
    assert events(form)[-1][1]["outputs"]["answer"] == plain["outputs"]["answer"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"instances": [{"inputs": {"text": "a"}}], "stream": True}, 400, 'stream: send "inputs"'),
        ({"inputs": {"text": "a"}, "stream": True, "explain": True}, 400, 'stream: send "inputs"'),
        ({"inputs": {"text": "a"}, "stream": "yes"}, 400, "stream: must be true or false"),
        ({"inputs": {"image": {"b64": "AAAA"}}, "stream": True}, 422, "image: "),
        ({"inputs": {}, "stream": True}, 422, "no input given"),
    ],
)
def test_streams_that_cannot_begin_are_problems(
    client: TestClient, body: Any, status: int, detail: str
) -> None:
    problem_of(client.post("/predict", json=body), status, detail)


def test_a_dialogue_fills_the_prompt_that_the_model_was_trained_with(
    chat: OpenAI, predictor: Predictor, png: bytes
) -> None:
    [expected] = predictor.predict([{"text": QUESTION, "image": png}])
    reply = chat.chat.completions.create(model="tiny", messages=user(QUESTION, image_part(png)))
    assert shown(reply.choices[0].message.content) == shown(expected["outputs"]["answer"]["text"])
    assert reply.usage.completion_tokens <= 12
    by_input = chat.chat.completions.create(
        model="tiny", messages=user(QUESTION), extra_body={"inputs": {"image": b64(png)}}
    )
    assert by_input.choices[0].message.content == reply.choices[0].message.content
    response = chat.responses.create(model="tiny", input=QUESTION, extra_body={"inputs": {"image": b64(png)}})
    assert response.output_text == reply.choices[0].message.content


def test_words_without_an_input_take_the_place_of_the_prompts(chat: OpenAI, predictor: Predictor) -> None:
    decoding = predictor.text_decodings()["answer"]
    reply = chat.chat.completions.create(
        model="tiny", messages=user("Describe it."), max_tokens=4, extra_body={"inputs": {"text": "the sky"}}
    )
    tokenizer = decoding.tokenizer
    turns = [{"role": "user", "content": "the sky\nDescribe it."}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert reply.usage.prompt_tokens == len(ids)
    raw = chat.completions.create(model="tiny", prompt=ids, max_tokens=4)
    assert raw.choices[0].text == reply.choices[0].message.content


def test_earlier_turns_are_rendered_by_the_chat_template(chat: OpenAI, predictor: Predictor) -> None:
    tokenizer = predictor.text_decodings()["answer"].tokenizer
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi<|im_end|>"},
        {"role": "assistant", "content": "hello"},
    ]
    reply = chat.chat.completions.create(
        model="tiny", messages=[*turns, *user(QUESTION)], max_tokens=6, temperature=0
    )
    turns[1]["content"] = "hi"  # the name of a special token cannot end a turn
    whole = [*turns, {"role": "user", "content": f"Asked: {QUESTION} Answer."}]
    ids = tokenizer.apply_chat_template(whole, add_generation_prompt=True)["input_ids"]
    raw = chat.completions.create(model="tiny", prompt=ids, max_tokens=6, temperature=0)
    assert raw.choices[0].text == reply.choices[0].message.content
    assert reply.usage.prompt_tokens == len(ids)


def test_streams_log_probabilities_and_schemas(chat: OpenAI, png: bytes) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": user(QUESTION, image_part(png)), "max_tokens": 10}
    plain = chat.chat.completions.create(**options)
    chunks = list(chat.chat.completions.create(**options, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content
    form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        done = chat.chat.completions.create(
            **{**options, "max_tokens": 20}, temperature=1.5, seed=seed, response_format=form
        )
        jsonschema.validate(json.loads(done.choices[0].message.content), SCHEMA)
    several = chat.chat.completions.create(**options, n=3, temperature=1.5, seed=0, logprobs=True)
    assert len({choice.message.content for choice in several.choices}) == 3
    assert len(several.choices[0].logprobs.content) <= 10


def test_the_model_is_listed_under_the_name_of_its_version(chat: OpenAI) -> None:
    assert [model.id for model in chat.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="use one of: tiny"):
        chat.chat.completions.create(model="gpt-4", messages=user("a"))


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role", "'robot' is no role"),
        (
            {"messages": [*user("a"), {"role": "assistant", "content": "b"}]},
            400,
            "messages",
            "must be a user's",
        ),
        (
            {"messages": user("a", {"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}})},
            400,
            "messages.0.content.1.image_url",
            "not base64",
        ),
        ({"messages": user("a", image_part(b"no image"))}, 422, "image", "image: "),
        (
            {"messages": user("a", {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}})},
            400,
            "messages.0.content.1.image_url",
            "public",
        ),
        (
            {
                "messages": user(
                    "a", {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
                )
            },
            400,
            "messages",
            "this model reads no sounds; its inputs are: image, text",
        ),
        (
            {"messages": user("a", image_part(b"1"), image_part(b"2"))},
            400,
            "messages",
            "have 2 images, and this model reads up to 1",
        ),
        ({"messages": user("")}, 422, None, "no input given"),
        ({"n": 17}, 400, "n", "less than or equal to 16"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 4000}, 400, "max_tokens", "4000 tokens do not fit"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "x"}},
                }
            },
            400,
            "json_schema",
            "Invalid type: x",
        ),
        ({"extra_body": {"inputs": {"imag": 1}}}, 400, "imag", "did you mean image"),
    ],
)
def test_wrong_requests_are_errors_in_the_form_of_openai(
    chat: OpenAI, change: Any, status: int, param: str | None, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        chat.chat.completions.create(**{"model": "tiny", "messages": user("a"), **change})
    assert raised.value.status_code == status
    assert raised.value.body["param"] == param  # type: ignore[index]


class Steps:
    """Lets a decoder make steps one by one, and records how many requests had a slot after each."""

    def __init__(self, thread: DecoderThread, monkeypatch: pytest.MonkeyPatch) -> None:
        self.active: list[int] = []
        self.cancelled = threading.Event()
        self._allowed = threading.Semaphore(0)
        step, cancel = thread.decoder.step, thread.cancel

        def wait_and_step() -> Any:
            self._allowed.acquire(timeout=20)
            found = step()
            self.active.append(thread.decoder.active)
            return found

        monkeypatch.setattr(thread.decoder, "step", wait_and_step)
        monkeypatch.setattr(thread, "cancel", lambda request: (cancel(request), self.cancelled.set()))

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def forbid(self) -> None:
        while self._allowed.acquire(blocking=False):
            pass


@pytest.mark.parametrize("path", ["stream", "/predict", "/v1/chat/completions", "/predict stream"])
def test_a_client_that_leaves_frees_its_slot_within_two_steps(
    engine: InferenceEngine, url: str, chat: OpenAI, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    steps = Steps(engine.texts.tasks["answer"].thread, monkeypatch)
    long = {"type": "string", "minLength": 140}
    schema = {"name": "long", "schema": {"type": "object", "properties": {"a": long}, "required": ["a"]}}
    options = {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 160}
    body = {"model": "tiny", "messages": user(QUESTION), **options}
    if path == "stream":
        steps.allow(12)
        stream = chat.chat.completions.create(**{**body, "stream": True})
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        stream.close()
    else:
        steps.allow(1)
        target, _, streamed = path.partition(" ")
        if target == "/predict":
            body = {"inputs": {"text": QUESTION}, **({"stream": True} if streamed else {})}
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{url}{target}", json=body, timeout=httpx.Timeout(20, read=2), trust_env=False)
    assert steps.cancelled.wait(20)
    steps.forbid()
    before = len(steps.active)
    assert steps.active[-1] == 1
    steps.allow(4)
    wait_until_idle(engine)
    assert 0 in steps.active[before : before + 2]
    steps.allow(10_000)


def wait_until_idle(engine: InferenceEngine) -> None:
    deadline = time.monotonic() + 20
    while engine.texts.tasks["answer"].thread.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.texts.tasks["answer"].thread.pending == 0


def test_limits_of_the_service(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    few = build({"max_tokens": 5, "max_num_seqs": 1, "max_model_len": 120, "max_queued_tokens": 150})
    body = {"model": "tiny", "messages": user(QUESTION)}
    error = few.post("/v1/chat/completions", json={**body, "max_tokens": 6}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "invalid_value")
    assert "6 is above the 5 tokens" in error["message"]
    assert few.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] <= 5
    answered = threading.Event()
    step = Decoder.step
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", lambda self: answered.wait() and step(self))
        busy = few.post("/v1/chat/completions", json={**body, "n": 3, "max_tokens": 5})
        answered.set()
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    assert busy.json()["error"]["type"] == "rate_limit_error"
    long = few.post(
        "/v1/chat/completions",
        json={**body, "messages": [{"role": "assistant", "content": "a" * 200}, *user("a")]},
    )
    assert long.json()["error"]["code"] == "context_length_exceeded"
    short = build({"max_model_len": 40})
    problem_of(short.post("/predict", json={"inputs": {"text": QUESTION}}), 422, "max_model_len")


def test_keys_host_and_unknown_paths_on_the_openai_routes(build: Build, client: TestClient) -> None:
    locked = build(keys=(hash_api_key("secret"),))
    refused = locked.get("/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["type"] == "authentication_error"
    assert locked.get("/v1/models", headers={"Authorization": "Bearer secret"}).is_success
    other = client.get("/v1/models", headers={"Host": "example.org"})
    assert (other.status_code, other.json()["error"]["code"]) == (421, "misdirected")
    problem_of(client.get("/openapi.json", headers={"Host": "example.org"}), 421)
    missing = client.post("/v1/embeddings", json={})  # of a model without a retrieval task
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    large = build(max_body_size=100).post("/v1/chat/completions", content=b" " * 101)
    assert large.status_code == 413


def test_each_of_several_tasks_is_a_model_of_its_own(tmp_path: Path) -> None:
    tiny_generation.make_rows(tmp_path)
    tiny_language_models.randomize(tiny_language_models.qwen(tmp_path / "qwen"))
    one = tiny_generation.generation_job(tmp_path, "qwen").tasks["answer"].model_dump(exclude_unset=True)
    tasks = {"tasks.short": {**one, "max_tokens": 8}, "inputs.text.max_tokens": 32}
    job = tiny_generation.generation_job(tmp_path, "qwen", **tasks)
    predictor = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    engine = make_engine(predictor)
    try:
        with serve_app_in_thread(build_app(engine)) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
            assert [one.id for one in client.models.list()] == ["tiny/answer", "tiny/short"]
            replies = [
                client.chat.completions.create(model=f"tiny/{task}", messages=user(QUESTION))
                for task in ("answer", "short")
            ]
            [expected] = predictor.predict([{"text": QUESTION}])
            texts = [shown(reply.choices[0].message.content or "") for reply in replies]
            assert texts == [shown(expected["outputs"][task]["text"]) for task in ("answer", "short")]
            assert replies[1].usage is not None
            assert replies[1].usage.completion_tokens <= 8
            with pytest.raises(openai.NotFoundError, match="use one of: tiny/answer, tiny/short"):
                client.chat.completions.create(model="tiny", messages=user(QUESTION))
    finally:
        engine.texts.close()


def test_the_document_lists_the_openai_routes(client: TestClient) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = client.get("/openapi.json").json()
    validator.validate(document)
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert chat["schema"]["properties"]["model"] == {"enum": ["tiny"]}
    assert set(chat["schema"]["properties"]["inputs"]["properties"]) == {"image", "text"}
    jsonschema.validate({"model": "tiny", "messages": user("a"), "max_tokens": 3}, chat["schema"])
    assert {"/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{model}"} <= set(document["paths"])


def test_a_decoder_that_stops_or_fails_makes_the_replica_unhealthy(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(predictor)
    thread = engine.texts.tasks["answer"].thread

    def fail() -> Any:
        raise RuntimeError("out of order")

    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        check_failures(client, thread, fail, monkeypatch)
    asyncio.run(engine.close())


def check_failures(
    client: TestClient, thread: DecoderThread, fail: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread.decoder, "step", fail)
    for _ in range(5):
        problem_of(client.post("/predict", json={"inputs": {"text": "a"}}), 500)
    assert "failed 5 times in a row" in client.get("/v2/health/ready").json()["reason"]
    monkeypatch.undo()
    assert client.post("/predict", json={"inputs": {"text": "a"}}).is_success
    assert client.get("/v2/health/ready").json() == {"ready": True}
    thread.close()
    assert "has stopped" in client.get("/v2/health/ready").json()["reason"]


def test_a_beam_search_is_decoded_in_batches(tmp_path: Path) -> None:
    tiny_generation.make_rows(tmp_path)
    job = tiny_generation.generation_job(tmp_path, task={"decoding": {"num_beams": 2}})
    beams = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    engine = make_engine(beams)
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        found = client.post("/predict", json={"inputs": {"text": QUESTION}}).json()
        assert found["outputs"] == beams.predict([{"text": QUESTION}])[0]["outputs"]
        problem_of(client.post("/predict", json={"inputs": {"text": "a"}, "stream": True}), 400, "no task")
        assert client.get("/v1/models").status_code == 404
        assert "/v1/models" not in client.get("/openapi.json").json()["paths"]


def test_warm_up_rejects_weights_that_compute_nan(predictor: Predictor) -> None:
    warm_up(predictor)
    projector: Any = predictor.model.tasks["answer"].projector  # type: ignore[union-attr]
    bias = projector.bias.detach().clone()
    with torch.no_grad():
        projector.bias.fill_(torch.nan)
        with pytest.raises(DataError, match="cannot write a text for dummy inputs: .*NaN"):
            warm_up(predictor)
        projector.bias.copy_(bias)

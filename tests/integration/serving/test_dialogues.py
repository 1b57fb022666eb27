"""Endpoints of models that reply to dialogues: the messages of a request render to what training rendered."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import tiny_generation
import tiny_jobs
import tiny_language_models
import tiny_vision_language_models
import torch
from endpoints import b64, problem_of, serve_app_in_thread
from openai import OpenAI
from starlette.testclient import TestClient

from rayfuse.data.dataset import load_dataset
from rayfuse.model.predictor import Predictor
from rayfuse.model.slot_decoding import PromptSpans
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.settings import Settings

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "a red"},
    {"role": "user", "content": "why?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    tiny_generation.make_dialogues(folder)
    tiny_language_models.randomize(tiny_language_models.qwen(folder / "qwen"))
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    predictor = Predictor(tiny_jobs.make_model_folder(folder, 0, job=tiny_generation.dialogue_job(folder)))
    torch.nn.init.normal_(predictor.model.tasks["reply"].projector.weight, std=0.3)  # type: ignore[union-attr]
    return predictor


def make_engine(predictor: Predictor) -> InferenceEngine:
    return InferenceEngine(predictor, Settings(model="tiny", version=1, batch_wait_timeout=0.0))


@pytest.fixture(scope="module")
def engine(predictor: Predictor) -> Iterator[InferenceEngine]:
    engine = make_engine(predictor)
    yield engine
    engine.texts.close()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    app = build_app(make_engine(predictor))
    with TestClient(app, "http://localhost", client=("127.0.0.1", 50000)) as client:
        yield client


@pytest.fixture(scope="module")
def chat(engine: InferenceEngine) -> Iterator[OpenAI]:
    with (
        serve_app_in_thread(build_app(engine)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def png(folder: Path) -> bytes:
    return tiny_jobs.write_image(folder / "a.png", "green").read_bytes()


def shown(text: str | None) -> str:
    return (text or "").strip("\N{REPLACEMENT CHARACTER} \n")


def image_part(content: bytes) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}"},
    }


def token_ids(spans: PromptSpans) -> list[Any]:
    """Return the tokens of a prompt, and None for each soft token."""
    return [
        token
        for span in spans
        for token in (span if isinstance(span, list) else [None] * len(span))
    ]  # fmt: skip


def test_requests_have_the_tokens_of_the_training_rows(
    folder: Path, engine: InferenceEngine, chat: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with images, other texts, system turns and several turns (vllm#47026)."""
    job, dataset = load_dataset(tiny_generation.dialogue_job(folder))
    _, batch = tiny_generation.load_batch(job)
    model: Any = engine.predictor.model
    head = model.tasks["reply"]
    with torch.no_grad():
        trained = [
            token_ids(head.reading.layout.spans(one))
            for one in head.reading.inputs(model.fuse(model.encode(batch), batch))
        ]
        laid_out = head.reading.layout.lay_out(model.fuse(model.encode(batch), batch))
    assert [len(ids) for ids in trained] == laid_out.lengths.tolist()
    served: list[Any] = []
    thread = engine.texts.tasks["reply"].thread
    original = thread.open
    monkeypatch.setattr(
        thread, "open", lambda request: served.append(token_ids(request.prompt)) or original(request)
    )
    for row in dataset.splits["train"]:
        messages = row.values["messages"][:-1]
        content: list[Any] = [{"type": "text", "text": messages[-1]["content"]}]
        if "image" in row.values:
            content.append(image_part((folder / "data" / row.values["image"]).read_bytes()))
        room = {"room": row.values["room"]} if "room" in row.values else {}
        chat.chat.completions.create(
            model="tiny",
            messages=[*messages[:-1], {"role": "user", "content": content}],
            max_tokens=1,
            extra_body={"inputs": room},
        )
    assert served == trained
    assert any(None in ids for ids in served)


@pytest.mark.parametrize("is_vision_language", [False, True])
def test_images_in_messages_are_those_of_the_training_rows(is_vision_language: bool, tmp_path: Path) -> None:
    tiny_generation.make_dialogues_with_images(tmp_path)
    if is_vision_language:
        job = tiny_vision_language_models.dialogue_job(tmp_path, "smolvlm")
    else:
        tiny_language_models.randomize(tiny_language_models.qwen(tmp_path / "qwen"))
        job = tiny_generation.dialogue_job(
            tmp_path, "qwen", {"prompt": None}, inputs=tiny_generation.inputs_with_parts()
        )
    predictor = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    torch.nn.init.normal_(predictor.model.tasks["reply"].projector.weight, std=0.3)  # type: ignore[union-attr]
    rows = [json.loads(line) for line in (tmp_path / "data" / "test.jsonl").read_text().splitlines()]
    expected = predictor.predict_rows(rows, str(tmp_path / "data"))
    app = build_app(make_engine(predictor))
    with TestClient(app, "http://localhost", client=("127.0.0.1", 50000)) as client:
        for row, prediction in zip(rows, expected, strict=True):
            messages = [inline_images(message, tmp_path / "data") for message in row["messages"][:-1]]
            reply = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages}).json()
            text = prediction["outputs"]["reply"]["text"]
            assert shown(reply["choices"][0]["message"]["content"]) == shown(text)
            found = client.post("/predict", json={"inputs": {"messages": messages}}).json()
            assert found["outputs"]["reply"]["text"] == text
            assert found["inputs_used"] == prediction["inputs_used"]
        hidden = [
            {"role": "user", "content": [{"type": "image", "image": str(tmp_path / "data" / "data.png")}]}
        ]
        problem_of(
            client.post("/predict", json={"inputs": {"messages": hidden}}), 422, "image: a part of a message"
        )
    assert len({prediction["outputs"]["reply"]["text"] for prediction in expected}) > 1


def inline_images(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a message with the files of its images inside."""
    if isinstance(message["content"], str):
        return message
    parts = [
        image_part((folder / part["image"]).read_bytes()) if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def test_replies_are_those_of_predict(
    client: TestClient, chat: OpenAI, predictor: Predictor, png: bytes
) -> None:
    [expected] = predictor.predict([{"messages": MESSAGES, "image": png, "room": "hall"}])
    text = expected["outputs"]["reply"]["text"]
    assert text
    inputs = {"messages": MESSAGES, "image": b64(png), "room": "hall"}
    response = client.post("/predict", json={"inputs": inputs}).json()
    assert response["outputs"]["reply"]["text"] == text
    assert response["inputs_used"] == ["messages", "image", "room"]
    form = {"messages": json.dumps(MESSAGES), "room": "hall"}
    by_form = client.post("/predict", data=form, files={"image": png}).json()
    assert by_form["outputs"]["reply"]["text"] == text
    options: dict[str, Any] = {"model": "tiny", "extra_body": {"inputs": {"room": "hall", "image": b64(png)}}}
    reply = chat.chat.completions.create(messages=MESSAGES, **options)  # type: ignore[call-overload]
    assert shown(reply.choices[0].message.content) == shown(text)
    chunks = chat.chat.completions.create(messages=MESSAGES, stream=True, **options)  # type: ignore[call-overload]
    assert shown("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == shown(text)
    answer = chat.responses.create(
        model="tiny",
        instructions="Be kind.",
        input=MESSAGES[1:],
        extra_body=options["extra_body"],  # type: ignore[arg-type]
    )
    assert shown(answer.output_text) == shown(text)


@pytest.mark.parametrize(
    ("messages", "detail"),
    [
        ([], "messages: missing: the list of messages is empty"),
        ("hi", "messages: expected a list of messages"),
        ([{"role": "tool", "content": "a"}], "messages: [0].role: 'tool' is no role"),
        (MESSAGES[:2] * 2, None),
        (MESSAGES[:1], "messages: [0]: the last message has the role system; it must be a user's"),
        ([{"role": "user", "content": [{"type": "video"}]}], "[0].content[0].type: 'video' is not supported"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "messages: a message has a part of type image, and",
        ),
        ([{"role": "user", "content": "a" * 200}], "messages: [0]: the last message, with the system's"),
    ],
)
def test_messages_that_cannot_be_answered_are_problems(
    client: TestClient, messages: Any, detail: str | None
) -> None:
    body = {"inputs": {"messages": messages}}
    for content in (
        body,
        {"instances": [{"inputs": {"messages": MESSAGES}}, body]},
        {**body, "stream": True},
    ):
        response = client.post("/predict", json=content)
        if detail is None:  # ChatML has no order of roles
            assert response.is_success
        else:
            problem_of(response, 422, detail)


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    [
        ({"messages": MESSAGES[:3]}, 400, "messages", "role assistant; it must be a user's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role", "'tool' is no role"),
        ({"messages": [{"role": "user", "content": "a" * 200}]}, 422, "messages", "exceeds max_tokens 130"),
        ({"extra_body": {"inputs": {"messages": MESSAGES}}}, 400, "inputs", "leave it out of `inputs`"),
        ({"extra_body": {"inputs": {"rom": "a"}}}, 400, "rom", "did you mean room"),
    ],
)
def test_messages_that_cannot_be_answered_are_openai_errors(
    chat: OpenAI, change: dict[str, Any], status: int, param: str, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        chat.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **change})
    assert raised.value.status_code == status
    assert raised.value.body["param"] == param  # type: ignore[index]


def test_the_document_describes_messages(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schema = document["components"]["schemas"]["Inputs"]["properties"]["messages"]
    jsonschema.validate(MESSAGES, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"role": "tool", "content": "a"}], schema)
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"][
        "one"
    ]
    assert client.post("/predict", json=example["value"]).is_success

"""The text routes of the OpenAI protocol, with the openai client, over a tiny model."""

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Iterator

import httpx
import jsonschema
import openai
import pytest
import random_language_models as tiny
from endpoints import serve_app_in_thread
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.request import DecodeRequest, Piece, SamplingParams
from rayfuse.decoding.stream import DecoderThread
from rayfuse.errors import InvalidInputError, RayfuseError
from rayfuse.serving.openai_decoder import DecoderGenerator
from rayfuse.serving.openai_generator import FilePart, GenerationRequest
from rayfuse.serving.openai_routes import OpenAIRoutes
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.settings import Settings

TOKENIZER = tiny.tokenizer()
PNG = base64.b64encode(b"\x89PNG image").decode()
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "hello"}]


class Prompts:
    """Renders requests, and records them."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    async def __call__(self, request: GenerationRequest) -> DecodeRequest:
        self.requests.append(request)
        if "unknown" in request.inputs:
            raise InvalidInputError("no such input; use one of: image", "inputs.unknown")
        if request.prompt is None:
            text = "".join(f"{message.role}: {message.text}\n" for message in request.messages or ())
            return DecodeRequest(TOKENIZER(text).input_ids)
        ids = TOKENIZER(request.prompt).input_ids if isinstance(request.prompt, str) else list(request.prompt)
        return DecodeRequest(ids)


def authorize(request: Request) -> None:
    if request.headers.get("authorization") != "Bearer secret":
        raise ProblemError("unauthorized", "send a valid API key in the header `Authorization: Bearer KEY`")


async def fetch(url: str) -> bytes:
    if "private" in url:
        raise InvalidInputError("the address of private is not public")
    return b"fetched " + url.encode()


def build_routes(generator, fetcher=None, authorize=None, **limits):
    settings = Settings(**limits)
    return OpenAIRoutes(
        lambda: {"tiny": generator}, lambda: settings, fetcher=fetcher, authorize=authorize
    ).routes()


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts()


@pytest.fixture(scope="module")
def thread() -> Iterator[DecoderThread]:
    opened = DecoderThread(Decoder(tiny.llama(), TOKENIZER, max_slots=4, max_length=90), max_waiting=2)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _queue_is_empty(thread: DecoderThread) -> Iterator[None]:
    """Wait until all requests of a test have left the decoder, also those that the routes cancel."""
    yield
    deadline = time.monotonic() + 20
    while thread.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.pending == 0


@pytest.fixture(scope="module")
def url(prompts: Prompts, thread: DecoderThread) -> Iterator[str]:
    generator = DecoderGenerator(thread, prompts, TOKENIZER, defaults=SamplingParams(), created=7)
    routes = build_routes(generator, fetcher=lambda: fetch, authorize=authorize, max_body_size=5000)
    with serve_app_in_thread(Starlette(routes=routes)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="secret", max_retries=0) as opened:
        yield opened


def error_of(raised: pytest.ExceptionInfo[openai.APIStatusError]) -> dict[str, object]:
    assert isinstance(raised.value.body, dict)
    return raised.value.body


def test_a_chat_completion(client, prompts):
    done = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12)
    choice = done.choices[0]
    prompt = TOKENIZER("user: hello\n").input_ids
    assert (done.object, done.model, done.choices[0].message.role) == ("chat.completion", "tiny", "assistant")
    assert done.usage.prompt_tokens == len(prompt)
    assert done.usage.total_tokens == len(prompt) + done.usage.completion_tokens
    assert (choice.finish_reason == "length") == (done.usage.completion_tokens == 12)
    again = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=12)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens == len(prompt) - 1


def test_a_stream_gives_the_same_text_as_the_plain_reply(client):
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 1.2, "seed": 3}
    plain = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == plain.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_several_choices_differ_and_share_their_prompt(client):
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 10, "temperature": 1.5, "seed": 1, "n": 3}
    plain = client.chat.completions.create(**options)
    texts = [choice.message.content for choice in plain.choices]
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert plain.usage.prompt_tokens == len(TOKENIZER("user: hello\n").input_ids)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_log_probabilities(client):
    done = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=2
    )
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)
    # Greedy: each token is the most probable one.
    assert all(token.token == token.top_logprobs[0].token for token in content)
    old = client.completions.create(model="tiny", prompt="hello", max_tokens=5, logprobs=1)
    assert len(old.choices[0].logprobs.tokens) == old.usage.completion_tokens
    assert old.choices[0].logprobs.text_offset[0] == 0


def test_stop_strings_end_a_reply(client):
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 30, "temperature": 1.5, "seed": 5}
    whole = client.chat.completions.create(**options).choices[0].message.content
    done = client.chat.completions.create(**options, stop=[whole[4:6]]).choices[0]
    assert done.message.content == whole[: whole.index(whole[4:6])]
    assert done.finish_reason == "stop"


def test_replies_that_follow_a_json_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        done = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=14, temperature=2, seed=seed, response_format=form
        )
        jsonschema.validate(json.loads(done.choices[0].message.content), SCHEMA)
        assert done.choices[0].finish_reason == "stop"
    done = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=20,
        temperature=1,
        seed=0,
        response_format={"type": "json_object"},
    )
    assert isinstance(json.loads(done.choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, response_format=form)
    assert error_of(raised)["param"] == "max_tokens"
    assert "3 tokens are too few" in str(raised.value)


def test_parts_of_messages_and_other_inputs_reach_the_model(client, prompts):
    parts = [
        {"type": "text", "text": "look "},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}},
        {"type": "text", "text": "here"},
    ]
    client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}],
        max_tokens=2,
        extra_body={"inputs": {"room": {"temperature": 21.5}}, "top_k": 3},
    )
    request = prompts.requests[-1]
    system, user = request.messages
    assert (system.role, system.text, user.text) == ("system", "Be kind.", "look here")
    files = [(part.kind, part.content) for part in user.parts if isinstance(part, FilePart)]
    assert files == [
        ("image", b"\x89PNG image"),
        ("image", b"fetched https://example.org/a.png"),
        ("audio", b"RIFF"),
    ]
    assert request.inputs == {"room": {"temperature": 21.5}}
    assert request.sampling.top_k == 3


def test_completions_of_texts_and_tokens(client):
    ids = TOKENIZER("hello w").input_ids
    by_text = client.completions.create(model="tiny", prompt="hello w", max_tokens=8)
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=8)
    both = client.completions.create(model="tiny", prompt=["hello w", "other"], max_tokens=8)
    assert by_text.choices[0].text == by_ids.choices[0].text == both.choices[0].text
    assert len(both.choices) == 2
    chunks = list(client.completions.create(model="tiny", prompt="hello w", max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_text.choices[0].text


def test_responses_plain_and_streamed(client, prompts):
    options = {"model": "tiny", "input": "hello", "instructions": "Be kind.", "max_output_tokens": 9}
    plain = client.responses.create(**options)
    assert [message.role for message in prompts.requests[-1].messages] == ["system", "user"]
    assert plain.usage.output_tokens <= 9
    if plain.status == "incomplete":
        assert plain.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(**options) as stream:
        events = list(stream)
    assert events[-1].response.output_text == plain.output_text
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta")
        == plain.output_text
    )
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{plain.status}"
    schema = {"format": {"type": "json_schema", "name": "switch", "schema": SCHEMA}}
    done = client.responses.create(model="tiny", input=HELLO, text=schema, max_output_tokens=20)
    jsonschema.validate(json.loads(done.output_text), SCHEMA)


def test_models(client):
    assert [(model.id, model.created) for model in client.models.list()] == [("tiny", 7)]
    assert client.models.retrieve("tiny").owned_by == "rayfuse"
    with pytest.raises(openai.NotFoundError, match="use one of: tiny") as raised:
        client.models.retrieve("other")
    assert error_of(raised)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "'robot' is no role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "send a text or a list of parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": 1}]}]},
            "messages.0.content.0.type",
            "'video' is no kind of part",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}}],
                    }
                ]
            },
            "messages.0.content.0.image_url",
            "not base64",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://private/a"}}],
                    }
                ]
            },
            "messages.0.content.0.image_url",
            "not public",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "midi"}}
                        ],
                    }
                ]
            },
            "messages.0.content.0.input_audio.format",
            "'midi' is not supported",
        ),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 4000}, "max_tokens", "4000 tokens do not fit"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "needs the field json_schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "text"}},
                }
            },
            "json_schema",
            "Invalid type: text",
        ),
        ({"extra_body": {"temperatures": 1}}, "temperatures", "did you mean temperature"),
        ({"extra_body": {"inputs": {"unknown": 1}}}, "inputs.unknown", "no such input"),
    ],
)
def test_wrong_requests_name_their_parameter(client, change, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **change})
    error = error_of(raised)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 5000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model": "tiny", "seed": 1e400}', "not finite"),
        (b'{"model": "tiny", "temperature": NaN}', "not finite"),
        (
            rb'{"model": "tiny", "messages": [{"role": "user", "content": "\ud800"}]}',
            "surrogates not allowed",
        ),
    ],
)
def test_bodies_that_are_not_valid_json(url, body, message):
    response = httpx.post(f"{url}/chat/completions", content=body, headers={"Authorization": "Bearer secret"})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_schema_that_no_reply_can_follow_is_rejected_soon(client):
    schema = {"type": "array", "minItems": 10**9, "items": {}}
    text = {"format": {"type": "json_schema", "name": "long", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="no text that follows the JSON schema was found"):
        client.responses.create(model="tiny", input="a", text=text)
    with pytest.raises(openai.BadRequestError, match="text.format.schema: Field required"):
        client.responses.create(
            model="tiny", input="a", text={"format": {"type": "json_schema", "name": "a"}}
        )


def test_a_prompt_that_does_not_fit_has_the_code_of_openai(client):
    with pytest.raises(openai.BadRequestError, match="a slot has 90") as raised:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 100}])
    assert error_of(raised)["code"] == "context_length_exceeded"


def test_fields_that_change_nothing_are_accepted(client):
    done = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=2,
        user="u",
        presence_penalty=0,
        tools=[],
        store=False,
        metadata={"a": "b"},
    )
    assert done.choices


def test_a_wrong_key_model_or_body(client, url):
    with (
        OpenAI(base_url=url, api_key="other", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.APIStatusError, match="exceeds 5000 bytes") as raised:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 6000}])
    assert raised.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not supported"):
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")


def test_a_full_queue_is_a_429_with_retry_after(client):
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=60, n=16)
    assert raised.value.response.headers["retry-after"] == "1"


def test_a_client_that_leaves_frees_its_slot(client, thread):
    stream = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=70, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while thread.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.pending == 0
    assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices


def test_a_client_that_leaves_before_its_turn_leaves_the_queue(client, thread, monkeypatch):
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 70, "stream": True}
    held, step, cancel = threading.Event(), thread.decoder.step, thread.cancel
    cancelled: list[int] = []
    monkeypatch.setattr(thread.decoder, "step", lambda: (held.wait(20), step())[1])
    monkeypatch.setattr(
        thread, "cancel", lambda request_id: (cancelled.append(request_id), cancel(request_id))
    )
    streams = [client.chat.completions.create(**options) for _ in range(5)]
    assert thread.pending == 5
    streams[4].close()
    deadline = time.monotonic() + 20
    while not cancelled and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(cancelled) == 1
    held.set()
    for stream in streams[:4]:
        assert list(stream)[-1].choices[0].finish_reason
    while thread.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.pending == 0


def test_a_reply_that_does_not_end_in_time_is_a_504(thread, prompts, monkeypatch):
    generator = DecoderGenerator(thread, prompts, TOKENIZER)
    held, step = threading.Event(), thread.decoder.step
    monkeypatch.setattr(thread.decoder, "step", lambda: (held.wait(20), step())[1])
    app = Starlette(routes=build_routes(generator, request_timeout=0.2))
    with (
        serve_app_in_thread(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="did not end within 0.2 s") as raised:
            client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
        held.set()
    assert raised.value.status_code == 504


class FailingGenerator:
    """A generator whose replies fail behind their first piece."""

    created = 7
    defaults = SamplingParams()

    async def open(self, request):
        return FailingReply()

    def token_text(self, token_id):
        return b""


class FailingReply:
    async def __aiter__(self):
        yield Piece("begun", (1,), prompt_tokens=3)
        raise RayfuseError("the model failed")

    def cancel(self):
        pass


def test_an_error_within_a_stream_is_its_last_event():
    app = Starlette(routes=build_routes(FailingGenerator()))
    with (
        serve_app_in_thread(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        texts: list[str] = []
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="internal error; see the endpoint's log"):
            deque(texts.append(chunk.choices[0].delta.content) for chunk in stream)
        assert texts == ["", "begun"]
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="tiny", messages=HELLO)
    assert error_of(raised)["type"] == "server_error"

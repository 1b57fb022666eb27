"""The routes of the OpenAI protocol below `/v1`: texts, transcriptions, speech, embeddings and models."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rayfuse.decoding.request import Completion, Piece, SamplingParams, join_pieces
from rayfuse.formatting import truncated_repr
from rayfuse.serving import protocol
from rayfuse.serving.openai_content import Fetch, read_messages
from rayfuse.serving.openai_embeddings import TextEmbedder, embedding_response, requested_texts
from rayfuse.serving.openai_errors import OpenAIError, to_openai_error, too_slow
from rayfuse.serving.openai_generator import ChatMessage, FilePart, GenerationRequest, TextGenerator
from rayfuse.serving.openai_replies import ChatForm, CompletionForm, ReplyForm, ResponsesForm
from rayfuse.serving.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponsesRequest,
    TextRequest,
    parse_request,
)
from rayfuse.serving.openai_speech import SpeechModel, SpeechRequest, speech_response
from rayfuse.serving.openai_transcriptions import TranscriptionForm, parse_form
from rayfuse.serving.problems import to_json
from rayfuse.serving.streaming import EventStream, Reply, cancel, encode_event, merge, until_disconnected

_JSON = "application/json"

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_M = TypeVar("_M")


class RouteLimits(Protocol):
    """Limits of requests, such as the settings of an endpoint."""

    @property
    def max_body_size(self) -> int:
        """Bytes of a request's body."""
        ...

    @property
    def request_timeout(self) -> float:
        """Seconds until the end of a response."""
        ...


class OpenAIRoutes:
    """Handlers of the routes over generators of texts, embedders and voices.

    `generators`, `embedders`, `voices`: return the models by name; the names may change while the routes are served.
    `limits`: returns the limits of a request.
    `fetcher`: returns what downloads the images that a request names by URL; None: only `data:` URIs are allowed.
    `authorize`: raises ProblemError or OpenAIError for a request that is not allowed.
    """

    def __init__(
        self,
        generators: Callable[[], Mapping[str, TextGenerator]],
        limits: Callable[[], RouteLimits],
        *,
        embedders: Callable[[], Mapping[str, TextEmbedder]] = dict,
        voices: Callable[[], Mapping[str, SpeechModel]] = dict,
        fetcher: Callable[[], Fetch] | None = None,
        authorize: Callable[[Request], None] | None = None,
    ) -> None:
        self._generators = generators
        self._embedders = embedders
        self._voices = voices
        self._limits = limits
        self._fetcher = fetcher
        self._authorize = authorize

    def routes(self) -> list[Route]:
        """Return the routes, relative to the path that the endpoint is mounted at."""
        texts: dict[str, Handler] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/responses": self.responses,
            "/v1/audio/transcriptions": self.transcriptions,
        }
        posts = dict(texts) if self._generators() else {}
        posts |= {"/v1/embeddings": self.embeddings} if self._embedders() else {}
        posts |= {"/v1/audio/speech": self.speech} if self._voices() else {}
        gets: dict[str, Handler] = {"/v1/models": self.models, "/v1/models/{model:path}": self.model}
        return [
            *(Route(path, self._handle(handler), methods=["POST"]) for path, handler in posts.items()),
            *(Route(path, self._handle(handler), methods=["GET"]) for path, handler in gets.items()),
        ]

    async def chat(self, request: Request) -> Response:
        """Reply to a dialogue (POST /v1/chat/completions)."""
        body = parse_request(ChatRequest, await self._read_json(request))
        generator = self._generator(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise OpenAIError(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        form = None if body.response_format is None else body.response_format
        template = GenerationRequest(
            sampling=_sampling(
                body, generator, body.max_completion_tokens or body.max_tokens, body.stop, top_logprobs
            ),
            messages=await read_messages(body.messages, self._fetch()),
            inputs=body.inputs,
            json_schema=None if form is None else form.as_json_schema("response_format"),
        )
        reply_form = ChatForm(body, body.model, generator.token_text)
        return await self._reply(request, generator, body, _choices(template, body.n), reply_form)

    async def completions(self, request: Request) -> Response:
        """Continue a text or tokens (POST /v1/completions)."""
        body = parse_request(CompletionRequest, await self._read_json(request))
        generator = self._generator(body.model)
        template = GenerationRequest(
            sampling=_sampling(body, generator, body.max_tokens, body.stop, body.logprobs), inputs=body.inputs
        )
        prompts = [replace(template, prompt=prompt) for prompt in _prompts(body.prompt)]
        requests = [choice for prompt in prompts for choice in _choices(prompt, body.n)]
        return await self._reply(
            request, generator, body, requests, CompletionForm(body, body.model, generator.token_text)
        )

    async def responses(self, request: Request) -> Response:
        """Reply to a text or a dialogue (POST /v1/responses)."""
        body = parse_request(ResponsesRequest, await self._read_json(request))
        generator = self._generator(body.model)
        items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        for index, item in enumerate(items):
            if item.get("type", "message") != "message":
                path = f"input.{index}.type"
                kind = truncated_repr(item["type"])
                raise OpenAIError(
                    400, f"{path}: {kind} is not supported; send messages", path, "invalid_value"
                )
        messages = await read_messages(items, self._fetch(), "input")
        if body.instructions:
            system = await read_messages(
                [{"role": "system", "content": body.instructions}], None, "instructions"
            )
            messages = (*system, *messages)
        text_format = None if body.text is None else body.text.format.as_response_format()
        sampling = _sampling(body, generator, body.max_output_tokens, None, None)
        template = GenerationRequest(
            sampling=sampling,
            messages=messages,
            inputs=body.inputs,
            json_schema=None if text_format is None else text_format.as_json_schema("text.format"),
        )
        reply_form = ResponsesForm(body, body.model, sampling.temperature)
        return await self._reply(request, generator, body, [template], reply_form)

    async def transcriptions(self, request: Request) -> Response:
        """Transcribe a sound (POST /v1/audio/transcriptions)."""
        content_type = request.headers.get("content-type", "")
        body, sound = parse_form(await self._read_body(request), content_type)
        generator = self._generator(body.model)
        template = GenerationRequest(
            sampling=_sampling(body, generator, body.max_tokens, None, None),
            messages=(ChatMessage("user", (FilePart("audio", sound),)),),
            inputs=body.inputs,
            language=body.language,
            time_stamps=body.is_timed,
        )
        return await self._reply(request, generator, body, [template], TranscriptionForm(body))

    async def embeddings(self, request: Request) -> Response:
        """Embed texts (POST /v1/embeddings)."""
        body = parse_request(EmbeddingRequest, await self._read_json(request))
        embedder = _find(self._embedders(), body.model)
        texts = requested_texts(body, embedder.dim)
        timeout = self._limits().request_timeout
        try:
            async with asyncio.timeout(timeout):
                vectors, tokens = await until_disconnected(request, embedder.embed(texts))
        except TimeoutError:
            raise too_slow(timeout) from None
        return _json(embedding_response(body, vectors, tokens))

    async def speech(self, request: Request) -> Response:
        """Speak a text (POST /v1/audio/speech)."""
        body = parse_request(SpeechRequest, await self._read_json(request))
        stream = _find(self._voices(), body.model).open(body.params())
        return await speech_response(request, stream, body, self._limits().request_timeout, _expected)

    async def models(self, request: Request) -> Response:
        """List the models (GET /v1/models)."""
        models = [_model(name, model) for name, model in self._models().items()]
        return _json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """Describe one of the models (GET /v1/models/NAME)."""
        name = request.path_params["model"]
        return _json(_model(name, _find(self._models(), name)))

    def _models(self) -> dict[str, TextGenerator | TextEmbedder | SpeechModel]:
        return {**self._generators(), **self._embedders(), **self._voices()}

    def _generator(self, name: str) -> TextGenerator:
        return _find(self._generators(), name)

    def _fetch(self) -> Fetch | None:
        return None if self._fetcher is None else self._fetcher()

    async def _reply(
        self,
        request: Request,
        generator: TextGenerator,
        body: TextRequest,
        choices: Sequence[GenerationRequest],
        form: ReplyForm,
    ) -> Response:
        timeout = self._limits().request_timeout
        replies: list[Reply] = []
        try:
            async with asyncio.timeout(timeout):
                for choice in choices:
                    replies.append(await generator.open(choice))
        except TimeoutError:
            cancel(replies)
            raise too_slow(timeout) from None
        except BaseException:
            cancel(replies)
            raise
        if body.stream:
            return EventStream(_stream(replies, form, timeout), replies)
        return form.response(await until_disconnected(request, _collect(replies, timeout)))

    async def _read_json(self, request: Request) -> Any:
        return _parse_json(await self._read_body(request))

    async def _read_body(self, request: Request) -> bytes:
        limits, content = self._limits(), bytearray()
        try:
            async with asyncio.timeout(limits.request_timeout):
                async for chunk in request.stream():
                    content.extend(chunk)
                    if len(content) > limits.max_body_size:
                        raise OpenAIError(
                            413, f"the body exceeds {limits.max_body_size} bytes (limits.max_body_size)"
                        )
        except TimeoutError:
            reason = f"the body was not received within {limits.request_timeout:g} s (limits.request_timeout)"
            raise OpenAIError(408, reason, None, "timeout") from None
        return bytes(content)

    def _handle(self, handler: Handler) -> Handler:
        """Wrap a handler to respond in OpenAI's form for any exception; unexpected ones are logged."""

        async def handle(request: Request) -> Response:
            try:
                if self._authorize is not None:
                    self._authorize(request)
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # not sent: the client has disconnected
            except Exception as raised:  # noqa: BLE001 - logged with its traceback
                error = _expected(raised)
            return Response(to_json(error.body), error.status, error.headers, _JSON)

        return handle


def _find(models: Mapping[str, _M], name: str) -> _M:
    """Return the model of a name; raise OpenAIError if there is none."""
    if name not in models:
        reason = f"no model {truncated_repr(name)}; use one of: {', '.join(models)}"
        raise OpenAIError(404, reason, "model", "model_not_found")
    return models[name]


def _model(name: str, model: TextGenerator | TextEmbedder | SpeechModel) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "rayfuse"}


def _sampling(
    body: TextRequest,
    generator: TextGenerator,
    max_tokens: int | None,
    stop: Sequence[str] | None,
    top_logprobs: int | None,
) -> SamplingParams:
    defaults = generator.defaults
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=body.seed,
        stop=tuple(stop or ()),
        top_logprobs=top_logprobs,
    )


def _expected(raised: Exception) -> OpenAIError:
    """Return an exception in OpenAI's form; one that is a bug is logged, and its message stays in the log."""
    error = to_openai_error(raised)
    if error is None:
        _log.error("an OpenAI route failed", exc_info=raised)
        error = OpenAIError(500, "internal error; see the endpoint's log", None, "internal")
    return error


def _parse_json(content: bytes) -> Any:
    """Return the value of a JSON text of valid Unicode and finite numbers. Raises OpenAIError for another one."""
    try:
        protocol.check_json_memory(content.decode("utf-8", "replace"))
        parsed = json.loads(content, parse_constant=_finite, parse_float=_finite)
        if b"\\ud" in content.lower():
            json.dumps(parsed, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise OpenAIError(400, f"the body is not valid JSON: {error}", None, "invalid_json") from None
    return parsed


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is not finite")
    return number


def _choices(template: GenerationRequest, count: int | None) -> list[GenerationRequest]:
    """Return a request per choice; a seed is raised by one for each, so that the choices differ."""
    seed = template.sampling.seed
    seeds = [None if seed is None else seed + index for index in range(count or 1)]
    return [replace(template, sampling=replace(template.sampling, seed=each)) for each in seeds]


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise OpenAIError(
            400, "prompt: the list is empty; send a text or token ids", "prompt", "invalid_value"
        )
    if all(isinstance(part, int) for part in prompt):
        return [tuple(part for part in prompt if isinstance(part, int))]
    return [part if isinstance(part, str) else tuple(part) for part in prompt if not isinstance(part, int)]


async def _collect(replies: Sequence[Reply], timeout: float) -> list[Completion]:
    pieces: list[list[Piece]] = [[] for _ in replies]
    try:
        async for index, piece in merge(replies, timeout):
            pieces[index].append(piece)
    except TimeoutError:
        raise too_slow(timeout) from None
    return [join_pieces(own) for own in pieces]


async def _stream(replies: Sequence[Reply], form: ReplyForm, timeout: float) -> AsyncIterator[bytes]:
    """Yield the events of a stream; an error behind its beginning becomes its last event."""
    pieces: list[list[Piece]] = [[] for _ in replies]
    try:
        for event in form.start():
            yield _encode(event)
        async for index, piece in merge(replies, timeout):
            pieces[index].append(piece)
            for event in form.piece(index, piece):
                yield _encode(event)
        for event in form.end([join_pieces(own) for own in pieces]):
            yield _encode(event)
        yield form.done
    except TimeoutError:
        yield _encode(too_slow(timeout).body)
    except Exception as raised:  # noqa: BLE001 - logged with its traceback
        yield _encode(_expected(raised).body)
    finally:
        cancel(replies)


def _encode(event: dict[str, Any]) -> bytes:
    """Return an event; those of the route /responses have names."""
    name = str(event.get("type", ""))
    return encode_event(event, name if name.startswith("response.") else "")


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type=_JSON)

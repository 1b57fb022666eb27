"""The text routes of the OpenAI protocol below `/v1`: chat completions, completions, responses, models."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rayfuse.decoding.request import Completion, Piece, SamplingParams, join_pieces
from rayfuse.formatting import truncated_repr
from rayfuse.serving.openai_content import Fetch, read_messages
from rayfuse.serving.openai_errors import OpenAIError, to_openai_error
from rayfuse.serving.openai_generator import GenerationRequest, Reply, TextGenerator
from rayfuse.serving.openai_replies import ChatForm, CompletionForm, ReplyForm, ResponsesForm
from rayfuse.serving.openai_requests import (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    TextRequest,
    parse_request,
)
from rayfuse.serving.problems import to_json

_JSON = "application/json"
_EVENTS = "text/event-stream"

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class OpenAIRoutes:
    """Handlers of the text routes over a generator.

    `fetch`: downloads the images that requests name by URL; None: only `data:` URIs are allowed.
    `authorize`: raises ProblemError or OpenAIError for a request that is not allowed.
    `max_body_size`: bytes of a request's body; `request_timeout`: seconds until the first piece of a reply.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        fetch: Fetch | None = None,
        authorize: Callable[[Request], None] | None = None,
        max_body_size: int = 20_000_000,
        request_timeout: float = 60.0,
    ) -> None:
        self._generator = generator
        self._fetch = fetch
        self._authorize = authorize
        self._max_body_size = max_body_size
        self._request_timeout = request_timeout

    def routes(self) -> list[Route]:
        """Return the routes, relative to the path that the endpoint is mounted at."""
        posts: dict[str, Handler] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/responses": self.responses,
        }
        gets: dict[str, Handler] = {"/v1/models": self.models, "/v1/models/{model:path}": self.model}
        return [
            *(Route(path, self._handle(handler), methods=["POST"]) for path, handler in posts.items()),
            *(Route(path, self._handle(handler), methods=["GET"]) for path, handler in gets.items()),
        ]

    async def chat(self, request: Request) -> Response:
        """Reply to a dialogue (POST /v1/chat/completions)."""
        body = parse_request(ChatRequest, await self._read_json(request))
        adapter = self._adapter(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise OpenAIError(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        form = None if body.response_format is None else body.response_format
        template = GenerationRequest(
            sampling=self._sampling(
                body, body.max_completion_tokens or body.max_tokens, body.stop, top_logprobs
            ),
            messages=await read_messages(body.messages, self._fetch),
            inputs=body.inputs,
            json_schema=None if form is None else form.as_json_schema("response_format"),
            adapter=adapter,
        )
        reply_form = ChatForm(body, body.model, self._generator.token_text)
        return await self._reply(request, body, _choices(template, body.n), reply_form)

    async def completions(self, request: Request) -> Response:
        """Continue a text or tokens (POST /v1/completions)."""
        body = parse_request(CompletionRequest, await self._read_json(request))
        template = GenerationRequest(
            sampling=self._sampling(body, body.max_tokens, body.stop, body.logprobs),
            inputs=body.inputs,
            adapter=self._adapter(body),
        )
        prompts = [replace(template, prompt=prompt) for prompt in _prompts(body.prompt)]
        requests = [choice for prompt in prompts for choice in _choices(prompt, body.n)]
        return await self._reply(
            request, body, requests, CompletionForm(body, body.model, self._generator.token_text)
        )

    async def responses(self, request: Request) -> Response:
        """Reply to a text or a dialogue (POST /v1/responses)."""
        body = parse_request(ResponsesRequest, await self._read_json(request))
        items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        for index, item in enumerate(items):
            if item.get("type", "message") != "message":
                path = f"input.{index}.type"
                kind = truncated_repr(item["type"])
                raise OpenAIError(
                    400, f"{path}: {kind} is not supported; send messages", path, "invalid_value"
                )
        messages = await read_messages(items, self._fetch, "input")
        if body.instructions:
            system = await read_messages(
                [{"role": "system", "content": body.instructions}], None, "instructions"
            )
            messages = (*system, *messages)
        text_format = None if body.text is None else body.text.format.as_response_format()
        sampling = self._sampling(body, body.max_output_tokens, None, None)
        template = GenerationRequest(
            sampling=sampling,
            messages=messages,
            inputs=body.inputs,
            json_schema=None if text_format is None else text_format.as_json_schema("text.format"),
            adapter=self._adapter(body),
        )
        return await self._reply(
            request, body, [template], ResponsesForm(body, body.model, sampling.temperature)
        )

    async def models(self, request: Request) -> Response:
        """List the names of the model and of its adapters (GET /v1/models)."""
        models = [self._model(name) for name in self._generator.models]
        return _json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """Describe one of the models (GET /v1/models/NAME)."""
        name = request.path_params["model"]
        self._check_model(name)
        return _json(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._generator.created, "owned_by": "rayfuse"}

    def _adapter(self, body: TextRequest) -> str | None:
        """Return the adapter that a request names as its model; None for the model itself."""
        self._check_model(body.model)
        return None if body.model == self._generator.models[0] else body.model

    def _check_model(self, name: str) -> None:
        if name not in self._generator.models:
            known = ", ".join(self._generator.models)
            raise OpenAIError(
                404, f"no model {truncated_repr(name)}; use one of: {known}", "model", "model_not_found"
            )

    def _sampling(
        self, body: TextRequest, max_tokens: int | None, stop: Sequence[str] | None, top_logprobs: int | None
    ) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self._generator.default_temperature if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            seed=body.seed,
            stop=tuple(stop or ()),
            top_logprobs=top_logprobs,
        )

    async def _reply(
        self, request: Request, body: TextRequest, choices: Sequence[GenerationRequest], form: ReplyForm
    ) -> Response:
        replies: list[Reply] = []
        try:
            for choice in choices:
                replies.append(await self._generator.open(choice))
        except BaseException:
            _cancel(replies)
            raise
        if body.stream:
            return _ReplyResponse(_stream(replies, form, self._request_timeout), replies)
        collected = _collect(replies, self._request_timeout)
        return _json(form.whole(await _until_disconnected(request, collected)))

    async def _read_json(self, request: Request) -> Any:
        content = bytearray()
        async with asyncio.timeout(self._request_timeout):
            async for chunk in request.stream():
                content.extend(chunk)
                if len(content) > self._max_body_size:
                    raise OpenAIError(
                        413, f"the body exceeds {self._max_body_size} bytes (limits.max_body_size)"
                    )
        return _parse_json(bytes(content))

    def _handle(self, handler: Handler) -> Handler:
        """Wrap a handler to respond in OpenAI's form for any exception; unexpected ones are logged."""

        async def handle(request: Request) -> Response:
            try:
                if self._authorize is not None:
                    self._authorize(request)
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # not sent: the client has disconnected
            except TimeoutError:
                error = OpenAIError(408, f"the body was not received within {self._request_timeout:g} s")
            except Exception as raised:  # noqa: BLE001 - logged with its traceback
                error = _expected(raised)
            return Response(to_json(error.body), error.status, error.headers, _JSON)

        return handle


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


class _ReplyResponse(StreamingResponse):
    """A stream of replies, which ends them as soon as the client disconnects, also while they wait for a slot."""

    def __init__(self, content: AsyncIterator[bytes], replies: Sequence[Reply]) -> None:
        super().__init__(content, media_type=_EVENTS, headers={"Cache-Control": "no-cache"})
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = asyncio.ensure_future(self._cancel_when_disconnected(receive))
        try:
            await super().__call__(scope, receive, send)
        finally:
            listener.cancel()
            _cancel(self._replies)

    async def _cancel_when_disconnected(self, receive: Receive) -> None:
        await _disconnect(receive)
        _cancel(self._replies)


async def _merge(replies: Sequence[Reply], timeout: float) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of several replies as they come, each with the number of its reply.

    Raises OpenAIError if the first does not come within `timeout` seconds, and what ended a reply.
    """
    pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

    async def read(index: int, reply: Reply) -> None:
        try:
            async for piece in reply:
                pieces.put_nowait((index, piece))
        except Exception as error:  # noqa: BLE001 - raised below
            pieces.put_nowait((index, error))

    tasks = [asyncio.create_task(read(index, reply)) for index, reply in enumerate(replies)]
    try:
        open_replies = len(replies)
        wait: float | None = timeout
        while open_replies:
            try:
                index, outcome = await asyncio.wait_for(pieces.get(), wait)
            except TimeoutError:
                raise OpenAIError(
                    504, f"no reply began within {timeout:g} s; try again later", None, "timeout"
                ) from None
            wait = None
            if isinstance(outcome, BaseException):
                raise outcome
            open_replies -= outcome.finish_reason is not None
            yield index, outcome
    finally:
        for task in tasks:
            task.cancel()
        _cancel(replies)


async def _collect(replies: Sequence[Reply], timeout: float) -> list[Completion]:
    pieces: list[list[Piece]] = [[] for _ in replies]
    async for index, piece in _merge(replies, timeout):
        pieces[index].append(piece)
    return [join_pieces(own) for own in pieces]


async def _stream(replies: Sequence[Reply], form: ReplyForm, timeout: float) -> AsyncIterator[bytes]:
    """Yield the events of a stream; an error behind its beginning becomes its last event."""
    pieces: list[list[Piece]] = [[] for _ in replies]
    try:
        for event in form.start():
            yield _encode(event)
        async for index, piece in _merge(replies, timeout):
            pieces[index].append(piece)
            for event in form.piece(index, piece):
                yield _encode(event)
        for event in form.end([join_pieces(own) for own in pieces]):
            yield _encode(event)
        yield form.done
    except Exception as raised:  # noqa: BLE001 - logged with its traceback
        yield _encode(_expected(raised).body)
    finally:
        _cancel(replies)


async def _until_disconnected(request: Request, work: Any) -> list[Completion]:
    """Await work, and cancel it as soon as the client disconnects."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        completions: list[Completion] = task.result()
        return completions
    finally:
        task.cancel()
        disconnected.cancel()


async def _disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _cancel(replies: Sequence[Reply]) -> None:
    for reply in replies:
        reply.cancel()


def _encode(event: dict[str, Any]) -> bytes:
    """Return an event in the form of server-sent events; those of the route /responses have names."""
    name = event.get("type", "")
    head = b"event: " + name.encode() + b"\n" if name.startswith("response.") else b""
    return head + b"data: " + to_json(event) + b"\n\n"


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type=_JSON)

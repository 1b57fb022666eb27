"""The ASGI application of an endpoint, built from its loaded model. Runs without Ray."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from rayfuse.modalities.base import Schema
from rayfuse.serving import problems, protocol, swagger_ui, try_page
from rayfuse.serving.cors import Cors
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.local_access import LocalOnly
from rayfuse.serving.openai_endpoint import embedder_names, model_names, openai_routes, text_sides
from rayfuse.serving.openai_errors import OpenAIError, is_openai_path
from rayfuse.serving.openapi import build_openapi
from rayfuse.serving.predict_stream import stream_prediction
from rayfuse.serving.problems import ProblemError, to_json
from rayfuse.serving.settings import Settings
from rayfuse.serving.streaming import until_disconnected

_NOT_FOUND_DETAIL = (
    "this endpoint has POST /predict and GET /, /docs, /openapi.json, /v2/health/live, /v2/health/ready; for models with "
    "generation tasks also POST /v1/chat/completions, /v1/completions, /v1/responses and GET /v1/models"
)
_KEYLESS_REMEDY = "set auth.keys in the spec of this endpoint to allow others"

Handler = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger(__name__)


class ServedModel(Protocol):
    """Engine of an endpoint, as its pages read it."""

    settings: Settings

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version` of the model."""
        ...

    def check_health(self) -> None:
        """Raise RuntimeError where the replica must be restarted."""
        ...


def build_app(engine: InferenceEngine) -> Starlette:
    """Build the ASGI application of an engine; its routes are relative to the path that it is mounted at."""
    endpoint = _Routes(engine)
    predict = Route("/predict", _handle_errors(endpoint.predict), methods=["POST"])
    assets = Route("/try/{file}", _handle_errors(endpoint.try_file), methods=["GET"])
    return assemble(
        endpoint, [predict, assets, *openai_routes(engine, endpoint.authorize)], _NOT_FOUND_DETAIL
    )


def assemble(pages: "Pages", routes: Sequence[Route], not_found: str) -> Starlette:
    """Build an application of pages and routes; `not_found` lists what it has."""
    engine = pages.engine
    gets = {
        "/v2/health/live": pages.live,
        "/v2/health/ready": pages.ready,
        "/openapi.json": pages.openapi,
        "/docs": pages.docs,
        "/docs/{file}": pages.docs_file,
        "/": pages.root,
    }

    def http_problem(request: Request, error: Exception) -> Response:
        return _http_problem_response(request, error, not_found)

    return Starlette(
        routes=[
            *routes,
            *(Route(path, _handle_errors(page), methods=["GET"]) for path, page in gets.items()),
        ],
        middleware=[
            Middleware(
                LocalOnly,
                applies=lambda _: not engine.settings.keys,
                remedy=_KEYLESS_REMEDY,
                respond=_problem_response,
            ),
            Middleware(Cors, origins=lambda: engine.settings.cors_origins),
        ],
        exception_handlers={HTTPException: http_problem},
    )


class Pages:
    """The handlers of the pages that every endpoint has."""

    def __init__(self, engine: ServedModel) -> None:
        self.engine = engine

    def build_document(self, root: str) -> Schema:
        """Build the OpenAPI document; `root` is the path prefix of the endpoint."""
        raise NotImplementedError

    async def live(self, _: Request) -> Response:
        """Respond that the replica runs."""
        return _json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """Respond whether the replica can serve requests."""
        try:
            self.engine.check_health()
        except RuntimeError as error:
            return _json_response({"ready": False, "reason": str(error)}, status=503)
        return _json_response({"ready": True})

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return _json_response(self.build_document(request.scope.get("root_path", "")))

    async def docs(self, request: Request) -> Response:
        """Return the page of Swagger UI."""
        title = f"{self.engine.model['name']} – Rayfuse"
        page = swagger_ui.render_page(title, request.scope.get("root_path", ""))
        return Response(page, media_type="text/html", headers=swagger_ui.HEADERS)

    async def docs_file(self, request: Request) -> Response:
        """Return a file of Swagger UI."""
        name = request.path_params["file"]
        if name == swagger_ui.INITIALIZER_FILE:
            return Response(swagger_ui.INITIALIZER_SCRIPT, media_type="text/javascript")
        path = swagger_ui.asset_path(name)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers={"Cache-Control": "max-age=3600"})

    async def root(self, request: Request) -> Response:
        """Redirect to the docs."""
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    def authorize(self, request: Request) -> None:
        """Raise ProblemError for a request without a valid API key."""
        settings = self.engine.settings
        if settings.keys:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not settings.is_valid_key(key.strip()):
                raise ProblemError(
                    "unauthorized", "send a valid API key in the header `Authorization: Bearer KEY`"
                )


class _Routes(Pages):
    """The handlers of an endpoint that predicts."""

    engine: InferenceEngine

    async def predict(self, request: Request) -> Response:
        self.authorize(request)
        content_type = request.headers.get("content-type")
        protocol.resolve_media_type(content_type, request.headers.get("content-encoding"))
        settings = self.engine.settings
        body_received = False
        with self.engine.admit():
            try:
                async with asyncio.timeout(settings.request_timeout):
                    body = await _read_body(request, settings.max_body_size)
                    body_received = True
                    parsed = await self.engine.parse(body, content_type or "")
                    del body
                    if parsed.stream:
                        return await stream_prediction(self.engine, parsed)
                    response, timing = await until_disconnected(request, self.engine.predict(parsed))
            except TimeoutError:
                raise _timeout_problem(body_received, settings.request_timeout) from None
        return _json_response(response, headers={"Server-Timing": timing.server_timing_header})

    async def root(self, request: Request) -> Response:
        title = f"{self.engine.model['name']} – Rayfuse"
        page = try_page.render_page(title, request.scope.get("root_path", ""))
        return Response(page, media_type="text/html", headers=try_page.HEADERS)

    async def try_file(self, request: Request) -> Response:
        path = try_page.asset_path(request.path_params["file"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers={"Cache-Control": "max-age=3600"})

    def build_document(self, root: str) -> Schema:
        engine, job = self.engine, self.engine.predictor.job
        name = str(engine.model["name"])
        texts = model_names(name, list(engine.texts.tasks))
        embedders = embedder_names(name, text_sides(job))
        return build_openapi(job, engine.model, root, bool(engine.settings.keys), texts, embedders)


async def _read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise ProblemError as soon as it exceeds `limit` bytes."""
    too_large = ProblemError("too-large", f"the body exceeds {limit} bytes (limits.max_body_size)")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise too_large
        body.extend(chunk)
    return bytes(body)


def _timeout_problem(body_received: bool, seconds: float) -> ProblemError:
    if body_received:
        return ProblemError("timeout", f"no response within {seconds:g} s (limits.request_timeout)")
    return ProblemError(
        "request-timeout", f"the body was not received within {seconds:g} s (limits.request_timeout)"
    )


def _handle_errors(handler: Handler) -> Handler:
    """Wrap a handler to respond with a problem for any exception; unexpected ones are logged and become a 500."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ProblemError as problem:
            return _problem_response(request.scope, problem)
        except HTTPException as error:
            return _http_problem_response(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # not sent: the client has disconnected
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("%s %s failed", request.method, request.url.path)
            return _problem_response(request.scope, ProblemError("internal", "see the endpoint's log"))

    return handle


def _problem_response(scope: Scope, problem: ProblemError) -> Response:
    """Return a problem, on the OpenAI routes in their form."""
    if is_openai_path(scope):
        error = OpenAIError(problem.status, problem.detail, code=problem.problem_type)
        return _json_response(error.body, error.status, error.headers)
    return Response(to_json(problem.body), problem.status, problem.headers, problems.MEDIA_TYPE)


def _http_problem_response(request: Request, error: Exception, not_found: str = "") -> Response:
    assert isinstance(error, HTTPException)
    detail = (error.status_code in (404, 405) and not_found) or error.detail
    if is_openai_path(request.scope):
        return _json_response(OpenAIError(error.status_code, detail).body, error.status_code)
    content = to_json(problems.http_problem(error.status_code, detail))
    return Response(content, error.status_code, error.headers, problems.MEDIA_TYPE)


def _json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, protocol.JSON)

"""The ASGI application of one endpoint, built from its loaded model. Ray is not needed to run it."""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from rayfuse.serve import docs, problems, protocol
from rayfuse.serve.engine import Engine
from rayfuse.serve.openapi import describe
from rayfuse.serve.problems import Problem, to_json

_ELSEWHERE = (
    "this endpoint answers POST /predict and GET /docs, /openapi.json, /v2/health/live, /v2/health/ready"
)

Handler = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger("rayfuse.serve")


def build_app(engine: Engine) -> Starlette:
    """Routes, below whatever path the server mounts this at."""
    endpoint = _Endpoint(engine)
    pages = {
        "/v2/health/live": endpoint.live,
        "/v2/health/ready": endpoint.ready,
        "/openapi.json": endpoint.openapi,
        "/docs": endpoint.docs,
        "/docs/{file}": endpoint.docs_file,
        "/": endpoint.root,
    }
    return Starlette(
        routes=[
            Route("/predict", _answering(endpoint.predict), methods=["POST"]),
            *(Route(path, _answering(page), methods=["GET"]) for path, page in pages.items()),
        ],
        exception_handlers={HTTPException: _http_problem},
    )


class _Endpoint:
    """What each path answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def predict(self, request: Request) -> Response:
        self._admit(request)
        content_type = request.headers.get("content-type")
        protocol.media_type(content_type, request.headers.get("content-encoding"))
        settings = self.engine.settings
        if self.engine.active >= settings.most:
            raise Problem("overloaded", f"{settings.queue} requests are waiting already; try again soon")
        self.engine.active += 1
        arrived = False
        try:
            async with asyncio.timeout(settings.timeout):
                body = await _read(request, settings.body)
                arrived = True
                asked = await self.engine.parse(body, content_type or "")
                del body
                reply, timing = await self.engine.answer(asked)
        except TimeoutError:
            raise _too_late(arrived, settings.timeout) from None
        finally:
            self.engine.active -= 1
        return _json(reply, headers={"Server-Timing": timing.header})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        try:
            self.engine.check()
        except RuntimeError as error:
            return _json({"ready": False, "reason": str(error)}, status=503)
        return _json({"ready": True})

    async def openapi(self, request: Request) -> Response:
        engine = self.engine
        root = request.scope.get("root_path", "")
        return _json(describe(engine.predictor.job, engine.model, root, bool(engine.settings.keys)))

    async def docs(self, request: Request) -> Response:
        title = f"{self.engine.model['name']} – Rayfuse"
        page = docs.page(title, request.scope.get("root_path", ""))
        return Response(page, media_type="text/html", headers=docs.HEADERS)

    async def docs_file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name == docs.START_FILE:
            return Response(docs.START, media_type="text/javascript")
        path = docs.asset(name)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers={"Cache-Control": "max-age=3600"})

    async def root(self, request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    def _admit(self, request: Request) -> None:
        settings = self.engine.settings
        if settings.keys:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not settings.admits(key.strip()):
                raise Problem("key-missing", "send one of this endpoint's keys: Authorization: Bearer KEY")
        elif not _from_here(request):
            raise Problem(
                "loopback-only", "this endpoint has no keys; set auth.keys in its spec to open it to others"
            )


async def _read(request: Request, limit: int) -> bytes:
    """The whole body; raises Problem before it is larger than `limit`."""
    too_large = Problem("too-large", f"the body is larger than {limit} bytes, the limit of this endpoint")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise too_large
        body.extend(chunk)
    return bytes(body)


def _too_late(arrived: bool, seconds: float) -> Problem:
    if arrived:
        return Problem("timeout", f"no answer within {seconds:g} s")
    return Problem("slow-body", f"the body was not here after {seconds:g} s")


def _answering(handler: Handler) -> Handler:
    """A handler whose errors are replies: a problem where the caller can do something, else a bare 500."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Problem as problem:
            return _problem(problem)
        except HTTPException as error:
            return _http_problem(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("%s %s failed", request.method, request.url.path)
            return _problem(Problem("internal", "the endpoint's log says why"))

    return handle


def _problem(problem: Problem) -> Response:
    return Response(to_json(problem.body), problem.status, problem.headers, problems.MEDIA_TYPE)


def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = _ELSEWHERE if error.status_code in (404, 405) else error.detail
    content = to_json(problems.plain(error.status_code, detail))
    return Response(content, error.status_code, error.headers, problems.MEDIA_TYPE)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, protocol.JSON)


def _from_here(request: Request) -> bool:
    """Whether the caller is on this machine, as far as the connection tells."""
    if request.client is None:
        return True
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False

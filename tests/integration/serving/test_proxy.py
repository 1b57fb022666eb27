"""The HTTP server of Ray Serve's proxy, configured as in its process, on real sockets and without Ray."""

import asyncio
import importlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from endpoints import problem_of
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from uvicorn import config as uvicorn_config

from rayfuse import ray_patches
from rayfuse.errors import RayfuseError
from rayfuse.serving.http_protocol import HeaderLimitProtocol
from rayfuse.serving.proxy import configure

EVIL = "evil.example.com"


@pytest.fixture
def middlewares(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configure the server as in a proxy's process, until the end of the test."""
    monkeypatch.setattr(http_util, "set_socket_reuse_port", http_util.set_socket_reuse_port)
    monkeypatch.setitem(uvicorn_config.HTTP_PROTOCOLS, "auto", uvicorn_config.HTTP_PROTOCOLS["auto"])
    return configure()


@contextmanager
def running(port: int, middlewares: list[Any]) -> Iterator[None]:
    """Run Serve's HTTP server on a port, in front of an application that echoes the path."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        await PlainTextResponse(scope["path"])(scope, receive, send)

    async def serve() -> None:
        options = HTTPOptions(host="127.0.0.1", port=port)
        options.middlewares.extend(middlewares)
        try:
            task, server = await http_util.start_asgi_http_server(
                echo, options, event_loop=asyncio.get_running_loop(), enable_so_reuseport=True
            )
        except RuntimeError as error:
            failed.append(error)
            ready.set()
            return
        servers.append(server)
        while not server.started:
            await asyncio.sleep(0.01)
        ready.set()
        await task

    servers: list[Any] = []
    failed: list[RuntimeError] = []
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    if failed:
        raise failed[0]
    try:
        yield
    finally:
        servers[0].should_exit = True
        thread.join()


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def url(port: int, middlewares: list[Any]) -> Iterator[str]:
    with running(port, middlewares):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def impatient(port: int, middlewares: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(HeaderLimitProtocol, "header_timeout", 0.3)
    with running(port, middlewares):
        yield port


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send pieces on a connection, and return all that is received until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def send_forever(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)


@pytest.mark.parametrize("module", ray_patches.PATCHED_ATTRIBUTES)
def test_the_installed_versions_have_what_the_patches_rely_on(module: str) -> None:
    assert ray_patches.require(module) is importlib.import_module(module)


def test_a_version_without_an_attribute_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(http_util, "set_socket_reuse_port")
    with pytest.raises(RayfuseError, match="has no set_socket_reuse_port .* install ray>="):
        ray_patches.bind_with_reuse_address()


def test_serve_finds_the_configuration_by_its_import_path() -> None:
    path = ray_patches.SERVE_ENV["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    module, _, name = path.partition(":")
    assert getattr(importlib.import_module(module), name) is configure


def test_ray_on_loopback_leaves_no_setting_behind() -> None:
    constants = ray_patches.require("ray._private.ray_constants")
    before = dict(os.environ), constants.ENABLE_RAY_CLUSTER
    assert constants.ENABLE_RAY_CLUSTERS_ENV_VAR in ray_patches.LOOPBACK_ENV
    with ray_patches.on_loopback():
        assert not constants.ENABLE_RAY_CLUSTER
    assert (dict(os.environ), constants.ENABLE_RAY_CLUSTER) == before


def test_a_port_is_free_again_at_once(port: int, middlewares: list[Any]) -> None:
    """A connection that the server closes stays in TIME_WAIT for a minute."""
    for _ in range(3):
        with running(port, middlewares):
            response = httpx.get(f"http://127.0.0.1:{port}/x", headers={"Connection": "close"})
            assert response.text == "/x"


def test_two_servers_cannot_share_a_port(port: int, middlewares: list[Any], url: str) -> None:
    with pytest.raises(RuntimeError, match="Failed to bind"), running(port, middlewares):
        pass
    assert httpx.get(f"{url}/x").text == "/x"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]"])
def test_the_list_of_routes_is_for_this_machine(url: str, host: str) -> None:
    assert httpx.get(f"{url}/-/routes", headers={"Host": host}).text == "/-/routes"


@pytest.mark.parametrize("path", ["/-/routes", "/%2d/routes", "/-/routes?x=1"])
def test_the_list_of_routes_is_not_for_others(url: str, path: str) -> None:
    problem_of(httpx.get(f"{url}{path}", headers={"Host": EVIL}), 421, "rayfuse serve status")
    forwarded = httpx.get(f"{url}{path}", headers={"X-Forwarded-For": "203.0.113.9"})
    problem_of(forwarded, 403, "only requests from loopback")


def test_other_paths_are_for_everyone(url: str) -> None:
    headers = {"Host": EVIL, "X-Forwarded-For": "203.0.113.9"}
    for path in ("/-/healthz", "/a/predict"):
        assert httpx.get(f"{url}{path}", headers=headers).text == path


@pytest.mark.parametrize(
    "pieces", [[b"GET"], [b"GET /x HTTP/1.1\r\nHost: a\r\n"], [b"GET /x HTTP/1.1\r\n", b"X-A: b\r\n" * 10]]
)
def test_headers_that_never_end_time_out(impatient: int, pieces: list[bytes]) -> None:
    received = exchange(impatient, *pieces)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in received
    assert b"not received within 0.3 s" in received


def test_connections_without_a_request_are_closed(impatient: int) -> None:
    assert exchange(impatient) == b""


def test_headers_after_a_response_time_out(impatient: int) -> None:
    received = exchange(impatient, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /y HTTP/1.1\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in received


@pytest.mark.parametrize("make", [lambda n: b"X-A: " + b"b" * n, lambda n: b"X-A: b\r\n" * (n // 8)])
def test_headers_that_are_too_large_are_rejected(impatient: int, make: Callable[[int], bytes]) -> None:
    with socket.create_connection(("127.0.0.1", impatient), timeout=20) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            send_forever(connection, make(8000))


def test_a_slow_body_is_not_cut_off_by_the_header_timeout(impatient: int) -> None:
    """The endpoint limits the time of the body (limits.request_timeout)."""
    request = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 50000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", impatient), timeout=20) as connection:
        connection.sendall(request)
        time.sleep(2 * HeaderLimitProtocol.header_timeout)
        connection.sendall(b"x" * 50_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")

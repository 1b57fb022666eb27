"""Addresses of other servers in place of a Ray dashboard."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rayfuse.errors import SpecError, UnavailableError
from rayfuse.serving.dashboard import connect

SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What a server of gRPC sends first: a frame of HTTP/2."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/api/serve/applications/" else 200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def web_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def grpc_server() -> Iterator[str]:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(SETTINGS)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_a_web_server_is_not_a_dashboard(web_server: str) -> None:
    dashboard = connect(web_server, {})
    for request in (dashboard.serve_details, dashboard.total_resources, dashboard.active_jobs):
        with pytest.raises(UnavailableError, match=rf"{web_server} is not the dashboard of a Ray cluster: "):
            request()


def test_a_port_of_grpc_is_not_a_dashboard(grpc_server: str) -> None:
    with pytest.raises(
        UnavailableError, match=r"is not the dashboard of a Ray cluster: its answer is not HTTP "
    ):
        connect(grpc_server, {}).serve_details()


def test_the_address_of_ray_client_is_not_a_dashboard() -> None:
    with pytest.raises(
        SpecError, match="ray://head:10001: the address of Ray Client, not that of a Ray dashboard"
    ):
        connect("ray://head:10001", {})

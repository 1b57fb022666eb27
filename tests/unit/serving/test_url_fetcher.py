"""Files by URL: from public addresses only, and up to the size limit."""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.serving.url_fetcher import Address, ByteBudget, fetch, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_outside_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/file":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif self.path == "/slow":
            self.server.released.wait(5)  # type: ignore[attr-defined]
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.released = [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> str:
    return f"http://localhost:{server.server_port}"


def get(url: str, limit: int = 10_000, seconds: float = 5.0) -> bytes:
    def anywhere(_: Address) -> bool:
        return True

    return asyncio.run(fetch(url, ByteBudget(limit), seconds, anywhere))


def fetch_error(url: str, **options: float) -> str:
    with pytest.raises(InvalidInputError) as caught:
        get(url, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_file_is_fetched_under_its_own_host_name(url: str, server: ThreadingHTTPServer) -> None:
    assert get(f"{url}/file") == b"x" * 1000
    assert server.seen[-1] == ("/file", url.removeprefix("http://"))  # type: ignore[attr-defined]


def test_a_redirect_is_followed(url: str) -> None:
    assert len(get(f"{url}/to//file")) == 1000
    assert len(get(f"{url}/to/{url}/file")) == 1000


def test_the_number_of_redirects_is_limited(url: str) -> None:
    assert "redirects" in fetch_error(f"{url}/to//to//to//to//file")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "//"])
def test_redirects_to_other_schemes_are_not_followed(url: str, target: str) -> None:
    assert fetch_error(f"{url}/to/{target}")


def test_redirects_to_private_addresses_are_not_followed(url: str) -> None:
    def only_the_first(_: Address) -> bool:
        fetched.append(1)
        return len(fetched) == 1

    fetched: list[int] = []
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        asyncio.run(fetch(f"{url}/to/{url}/file", ByteBudget(10_000), 5.0, only_the_first))


def test_downloads_above_the_limit_stop(url: str) -> None:
    assert "exceeds 999 bytes" in fetch_error(f"{url}/file", limit=999)


def test_downloads_time_out(url: str) -> None:
    assert "not fetched within 0.2 s" in fetch_error(f"{url}/slow", seconds=0.2)


def test_server_errors_are_reported(url: str) -> None:
    assert "404" in fetch_error(f"{url}/missing")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost:1/", "http://0x7f.1:1/"]
)
def test_loopback_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        asyncio.run(fetch(url, ByteBudget(10), 5.0))


@pytest.mark.parametrize(
    "url", ["", "x", "file:///etc/passwd", "http://", "http://\x00", "http://[", "http://a b/", "data:,x"]
)
def test_other_urls_than_http_are_rejected(url: str) -> None:
    with pytest.raises(InvalidInputError):
        asyncio.run(fetch(url, ByteBudget(10), 5.0))

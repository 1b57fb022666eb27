"""Files by URL: from allowed addresses only, and up to the size limit. All servers are real, on loopback."""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.serving.public_addresses import Address
from rayfuse.serving.url_fetcher import AddressPolicy, ByteBudget, fetch


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


def serve(host: str) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer((host, 0), Handler)
    server.seen, server.released = [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    yield from serve("127.0.0.1")


@pytest.fixture
def url(server: ThreadingHTTPServer) -> str:
    return f"http://localhost:{server.server_port}"


ANYWHERE = AddressPolicy(is_allowed=lambda _: True)


def get(url: str, limit: int = 10_000, seconds: float = 5.0, policy: AddressPolicy = ANYWHERE) -> bytes:
    return asyncio.run(fetch(url, ByteBudget(limit), seconds, policy))


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


class Names:
    """A resolver that gives its answers in turn, and counts the questions."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        return [ipaddress.ip_address(text) for text in self.answers[min(self.asked, len(self.answers)) - 1]]

    def policy(self, *allowed: str) -> AddressPolicy:
        return AddressPolicy(lambda address: str(address) in allowed, self.resolve)


@pytest.fixture
def internal() -> Iterator[ThreadingHTTPServer]:
    """Serve something on another address of this machine that no test may reach."""
    yield from serve("127.0.0.2")


def requests_of(server: ThreadingHTTPServer) -> list[tuple[str, str]]:
    return list(server.seen)  # type: ignore[attr-defined]


def test_redirects_to_forbidden_addresses_are_not_followed(url: str, internal: ThreadingHTTPServer) -> None:
    elsewhere = f"http://127.0.0.2:{internal.server_port}/file"
    assert get(elsewhere)
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        get(f"{url}/to/{elsewhere}", policy=AddressPolicy(lambda address: str(address) != "127.0.0.2"))
    assert len(requests_of(internal)) == 1


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(
    server: ThreadingHTTPServer, internal: ThreadingHTTPServer
) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    assert get(f"http://rebind.test:{server.server_port}/file", policy=names.policy("127.0.0.1"))
    assert names.asked == 1
    assert not requests_of(internal)


def test_a_name_that_changes_its_address_is_checked_again_after_a_redirect(
    server: ThreadingHTTPServer, internal: ThreadingHTTPServer
) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    host = f"http://rebind.test:{server.server_port}"
    target = f"{host}/to/http://rebind.test:{internal.server_port}/file"
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        get(target, policy=names.policy("127.0.0.1"))
    assert names.asked == 2
    assert not requests_of(internal)


@pytest.mark.parametrize(
    "answer", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "::1"]]
)
def test_all_addresses_of_a_name_must_be_allowed(
    answer: list[str], server: ThreadingHTTPServer, internal: ThreadingHTTPServer
) -> None:
    names = Names(answer)
    before = len(requests_of(server))
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        get(f"http://several.test:{server.server_port}/file", policy=names.policy("127.0.0.1"))
    assert len(requests_of(server)) == before
    assert not requests_of(internal)


def test_the_address_of_the_connected_peer_must_be_allowed(server: ThreadingHTTPServer) -> None:
    """Linux connects 0.0.0.0 to 127.0.0.1."""
    before = len(requests_of(server))
    with pytest.raises(InvalidInputError, match="does not have a public address"):
        get(f"http://zero.test:{server.server_port}/file", policy=Names(["0.0.0.0"]).policy("0.0.0.0"))
    assert len(requests_of(server)) == before


def test_the_next_address_is_tried_where_one_refuses(server: ThreadingHTTPServer) -> None:
    names = Names(["127.0.0.3", "127.0.0.1"])
    policy = names.policy("127.0.0.3", "127.0.0.1")
    assert get(f"http://several.test:{server.server_port}/file", policy=policy)


def test_names_without_an_address_are_reported() -> None:
    with pytest.raises(InvalidInputError, match="has no address"):
        get("http://nowhere.test/", policy=Names([]).policy())


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

"""Fetch files that requests name by URL, protected against server-side request forgery (SSRF).

Only http and https URLs whose host has public addresses alone are fetched. A host is resolved once per connection, by
the code that connects, and the address of the connected peer is checked before a byte is sent: a name that changes its
addresses (DNS rebinding) gains nothing. Each redirect opens a new connection. Proxies of the environment are not used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import httpcore
import httpx

from rayfuse.errors import InvalidInputError
from rayfuse.serving.public_addresses import Address, is_public

_MAX_REDIRECTS = 3
_HTTP_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
    OSError,
    UnicodeError,
)


class ByteBudget:
    """The number of bytes that the files of one request may have together."""

    def __init__(self, limit: int) -> None:
        self.limit = self.remaining = limit

    def consume(self, size: int) -> None:
        """Take `size` bytes; raise InvalidInputError where they exceed the rest of the budget."""
        self.remaining -= size
        if self.remaining < 0:
            raise InvalidInputError(f"exceeds {self.limit} bytes (limits.max_body_size)")


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host, as the operating system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


@dataclass(frozen=True)
class AddressPolicy:
    """Resolution of hosts, and the addresses that connections may have."""

    is_allowed: Callable[[Address], bool] = is_public
    """Return whether to connect to an address."""
    resolve: Callable[[str, int], Awaitable[Sequence[Address]]] = resolve
    """Return the addresses of a host and port."""


async def fetch(
    url: str,
    budget: ByteBudget,
    timeout: float,
    policy: AddressPolicy = AddressPolicy(),
) -> bytes:
    """Return the content of `url`; raise InvalidInputError where it is forbidden, too large or unavailable."""
    try:
        async with asyncio.timeout(timeout):
            return await _fetch_following_redirects(url, budget, policy)
    except TimeoutError:
        raise InvalidInputError(f"not fetched within {timeout:g} s") from None
    except _HTTP_ERRORS as error:
        raise InvalidInputError(f"cannot be fetched ({type(error).__name__})") from None


async def _fetch_following_redirects(url: str, budget: ByteBudget, policy: AddressPolicy) -> bytes:
    target = httpx.URL(url)
    for _ in range(_MAX_REDIRECTS + 1):
        async with (
            httpcore.AsyncConnectionPool(network_backend=_CheckedNetwork(policy)) as pool,
            pool.stream("GET", _to_httpcore(target), headers=_headers(target)) as response,
        ):
            location = httpx.Headers(response.headers).get("location")
            if httpx.codes.is_redirect(response.status) and location:
                target = target.join(location)
                continue
            if response.status != httpx.codes.OK:
                raise InvalidInputError(f"the server responded with status {response.status}")
            return await _read_body(response, budget)
    raise InvalidInputError(f"more than {_MAX_REDIRECTS} redirects")


def _to_httpcore(url: httpx.URL) -> httpcore.URL:
    """Return the URL without user and password; raise InvalidInputError for other schemes than http and https."""
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInputError("only http:// and https:// URLs are allowed")
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _headers(url: httpx.URL) -> list[tuple[bytes, bytes]]:
    return [(b"Host", url.netloc), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connections to allowed addresses only."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a host that accepts, where all of its addresses are allowed."""
        addresses = await self._resolve(host, port)
        self._check(addresses)
        error: Exception = InvalidInputError("the host name has no address")
        for address in addresses:
            try:
                stream = await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as failed:
                error = failed
            else:
                return await self._checked(stream)
        raise error

    async def _checked(self, stream: httpcore.AsyncNetworkStream) -> httpcore.AsyncNetworkStream:
        """Return the stream if its peer has an allowed address; otherwise close it and raise InvalidInputError."""
        try:
            self._check([ipaddress.ip_address(stream.get_extra_info("server_addr")[0])])
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            found = await self._policy.resolve(host, port)
        except OSError:
            raise InvalidInputError("the host name cannot be resolved") from None
        return list(dict.fromkeys(found))

    def _check(self, addresses: Iterable[Address]) -> None:
        if not all(map(self._policy.is_allowed, addresses)):
            raise InvalidInputError("the host does not have a public address; only public hosts are allowed")


async def _read_body(response: httpcore.Response, budget: ByteBudget) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_stream():
        budget.consume(len(chunk))
        content.extend(chunk)
    return bytes(content)

"""Fetch files that requests name by URL, protected against server-side request forgery (SSRF).

Only http and https URLs whose host resolves to public addresses are fetched. The connection is pinned to the validated
address, which prevents DNS rebinding. Redirects are validated in the same way. Proxies of the environment are not used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import httpx

from rayfuse.errors import InvalidInputError

_MAX_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Return whether an address is public; an IPv6 address that embeds an IPv4 address is judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo:
            return False
    return address.is_global and not address.is_multicast


class ByteBudget:
    """The number of bytes that the files of one request may have together."""

    def __init__(self, limit: int) -> None:
        self.limit = self.remaining = limit

    def consume(self, size: int) -> None:
        """Take `size` bytes; raise InvalidInputError where they exceed the rest of the budget."""
        self.remaining -= size
        if self.remaining < 0:
            raise InvalidInputError(f"exceeds {self.limit} bytes (limits.max_body_size)")


async def fetch(
    url: str, budget: ByteBudget, timeout: float, is_allowed: Callable[[Address], bool] = is_public
) -> bytes:
    """Return the content of `url`; raise InvalidInputError where it is forbidden, too large or unavailable."""
    try:
        async with asyncio.timeout(timeout):
            return await _fetch_following_redirects(url, budget, is_allowed)
    except TimeoutError:
        raise InvalidInputError(f"not fetched within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        raise InvalidInputError(f"cannot be fetched ({type(error).__name__})") from None


async def _fetch_following_redirects(
    url: str, budget: ByteBudget, is_allowed: Callable[[Address], bool]
) -> bytes:
    target = httpx.URL(url)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None) as client:
        for _ in range(_MAX_REDIRECTS + 1):
            request = await _build_pinned_request(client, target, is_allowed)
            response = await client.send(request, stream=True)
            try:
                if response.is_redirect:
                    target = target.join(response.headers["location"])
                    continue
                if response.status_code != httpx.codes.OK:
                    raise InvalidInputError(f"the server responded with status {response.status_code}")
                return await _read_body(response, budget)
            finally:
                await response.aclose()
    raise InvalidInputError(f"more than {_MAX_REDIRECTS} redirects")


async def _build_pinned_request(
    client: httpx.AsyncClient, url: httpx.URL, is_allowed: Callable[[Address], bool]
) -> httpx.Request:
    """Build a request to the validated address of the URL's host, with the host's name in the header and in TLS."""
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInputError("only http:// and https:// URLs are allowed")
    address = await _resolve(url, is_allowed)
    plain = url.copy_with(username=None, password=None, host=str(address))
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "*/*", "Accept-Encoding": "identity"}
    return client.build_request(
        "GET", plain, headers=headers, extensions={"sni_hostname": url.raw_host.decode()}
    )


async def _resolve(url: httpx.URL, is_allowed: Callable[[Address], bool]) -> Address:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    host = url.raw_host.decode("ascii").strip("[]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise InvalidInputError("the host name cannot be resolved") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    if not addresses or not all(is_allowed(address) for address in addresses):
        raise InvalidInputError("the host does not have a public address; only public hosts are allowed")
    return addresses[0]


async def _read_body(response: httpx.Response, budget: ByteBudget) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw():
        budget.consume(len(chunk))
        content.extend(chunk)
    return bytes(content)

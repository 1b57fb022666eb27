"""Fetch a file that a caller names by URL, without becoming a way into our own network.

Only http and https, and only addresses that anyone on the internet could reach: the name is resolved here and
the connection goes to the address that was checked, so that a second answer of the name server changes nothing.
Redirects are followed a few times and checked the same way. Proxies from the environment are not used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import httpx

from rayfuse.errors import BadInput

_MAX_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large, also where it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo:
            return False
    return address.is_global and not address.is_multicast


class Budget:
    """Bytes that the files of one request may have altogether."""

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise BadInput(f"larger than {self.limit} bytes, the limit for a request")


async def fetch(
    url: str, budget: Budget, seconds: float, allowed: Callable[[Address], bool] = is_public
) -> bytes:
    """The content of `url`. Raises BadInput that says why there is none."""
    try:
        async with asyncio.timeout(seconds):
            return await _follow(url, budget, allowed)
    except TimeoutError:
        raise BadInput(f"no answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        raise BadInput(f"cannot be fetched ({type(error).__name__})") from None


async def _follow(url: str, budget: Budget, allowed: Callable[[Address], bool]) -> bytes:
    target = httpx.URL(url)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None) as client:
        for _ in range(_MAX_REDIRECTS + 1):
            request = await _pinned(client, target, allowed)
            response = await client.send(request, stream=True)
            try:
                if response.is_redirect:
                    target = target.join(response.headers["location"])
                    continue
                if response.status_code != httpx.codes.OK:
                    raise BadInput(f"the server answers {response.status_code}")
                return await _read(response, budget)
            finally:
                await response.aclose()
    raise BadInput(f"more than {_MAX_REDIRECTS} redirects")


async def _pinned(
    client: httpx.AsyncClient, url: httpx.URL, allowed: Callable[[Address], bool]
) -> httpx.Request:
    """A request to the checked address of the URL's host; the host's name stays in the header and in TLS."""
    if url.scheme not in ("http", "https") or not url.host:
        raise BadInput("only http:// and https:// URLs are fetched")
    address = await _resolve(url, allowed)
    plain = url.copy_with(username=None, password=None, host=str(address))
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "*/*", "Accept-Encoding": "identity"}
    return client.build_request(
        "GET", plain, headers=headers, extensions={"sni_hostname": url.raw_host.decode()}
    )


async def _resolve(url: httpx.URL, allowed: Callable[[Address], bool]) -> Address:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    host = url.raw_host.decode("ascii").strip("[]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadInput("its host has no address") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise BadInput("its host is not on the public internet, and is not fetched from there")
    return addresses[0]


async def _read(response: httpx.Response, budget: Budget) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw():
        budget.spend(len(chunk))
        content.extend(chunk)
    return bytes(content)

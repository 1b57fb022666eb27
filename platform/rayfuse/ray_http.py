"""HTTP client for Ray's dashboard: token and errors. Does not import Ray."""

from collections.abc import Container
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from rayfuse.errors import ResourceError, SpecError, UnavailableError
from rayfuse.formatting import printable, truncate_middle

FAILED_SERVE_STATUSES = ("DEPLOY_FAILED", "UNHEALTHY")
"""Ray Serve's statuses of an application that failed."""

_TIMEOUT_SECONDS = 60.0

Json = TypeVar("Json", list[Any], dict[str, Any])


class RayHttp:
    """Client for the dashboard of one cluster. Raises UnavailableError if `url` is invalid."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(
                base_url=self.url, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=not self.is_local
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UnavailableError(f"{url}: not the URL of a Ray dashboard ({error})") from None

    @property
    def host(self) -> str:
        """Host name of the dashboard."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """True if the dashboard runs on this machine."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def request(
        self, method: str, path: str, allowed_statuses: Container[int] = (), **options: Any
    ) -> httpx.Response:
        """Send a request; return a success, or a response with one of the `allowed_statuses`.

        Raises:
            UnavailableError: The dashboard does not respond, or authentication failed.
            ResourceError: Any other status.
        """
        try:
            response = self._client.request(method, path, **options)
        except httpx.RemoteProtocolError as error:
            raise self.not_a_dashboard(f"its answer is not HTTP ({error})") from None
        except (httpx.HTTPError, UnicodeError) as error:
            raise UnavailableError(
                f"Ray's dashboard at {self.url} does not respond ({type(error).__name__}); check the address"
                " and that the cluster is running"
            ) from None
        if response.status_code in (401, 403):
            raise UnavailableError(
                f"authentication to Ray at {self.url} failed; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the "
                "token of the cluster"
            )
        if not response.is_success and response.status_code not in allowed_statuses:
            raise ResourceError(f"Ray at {self.url}: {method} {path}: {error_reason(response)}")
        return response

    def parse(self, response: httpx.Response, kind: type[Json]) -> Json:
        """Return the JSON of a response. Raises UnavailableError if it has none of this kind: it is another server."""
        content = None
        if response.is_success:
            with suppress(ValueError):
                content = response.json()
        if not isinstance(content, kind):
            raise self.not_a_dashboard(error_reason(response))
        return content

    def not_a_dashboard(self, reason: str) -> UnavailableError:
        """Return the error for a server that is not a dashboard of Ray."""
        return UnavailableError(
            f"{self.url} is not the dashboard of a Ray cluster: {printable(reason, 100)}; pass that address, as in "
            "http://HOST:8265"
        )


def check_address(address: str) -> None:
    """Raise SpecError for an address with another scheme than http and https, such as that of Ray Client."""
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        found = (
            "the address of Ray Client" if scheme == "ray" else f"an address with {printable(scheme, 20)}://"
        )
        raise SpecError(
            f"{truncate_middle(printable(address), 100)}: {found}, not that of a Ray dashboard; write http://HOST:8265"
        )


def error_reason(response: httpx.Response) -> str:
    """Return the status and the last line of a response; of a traceback, that is the exception."""
    lines = [line.strip() for line in response.text.splitlines() if line.strip()]
    return f"{response.status_code} {lines[-1][:300] if lines else ''}".strip()

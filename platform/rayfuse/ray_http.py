"""Ray's dashboard over HTTP: the address, the token and the errors that all who talk to it share. Imports no Ray."""

from collections.abc import Container
from typing import Any
from urllib.parse import urlsplit

import httpx

from rayfuse.errors import NotReachable, ResourceError

_SECONDS = 60.0


class RayHttp:
    """The dashboard of one cluster."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(
                base_url=self.url, headers=headers, timeout=_SECONDS, trust_env=not self.is_local
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise NotReachable(f"{url}: not the address of a Ray dashboard ({error})") from None

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the cluster's head is this machine."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def call(self, method: str, path: str, accept: Container[int] = (), **options: Any) -> httpx.Response:
        """What Ray answers: a success, or one of the status codes in `accept`.

        Raises NotReachable where it does not answer or does not let us in, ResourceError for another answer.
        """
        try:
            response = self._client.request(method, path, **options)
        except (httpx.HTTPError, UnicodeError) as error:
            raise NotReachable(
                f"Ray's dashboard at {self.url} does not answer ({type(error).__name__})"
            ) from None
        if response.status_code in (401, 403):
            raise NotReachable(
                f"Ray at {self.url} does not let us in; set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
            )
        if not response.is_success and response.status_code not in accept:
            raise ResourceError(f"Ray at {self.url}: {method} {path}: {reason(response)}")
        return response


def reason(response: httpx.Response) -> str:
    """Status and last line of an answer: where it is a traceback, the exception."""
    lines = [line.strip() for line in response.text.splitlines() if line.strip()]
    return f"{response.status_code} {lines[-1][:300] if lines else ''}".strip()

"""What goes wrong with a request, as RFC 9457 wants it told: `application/problem+json`."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 1
"""Seconds after which a refused request may try again."""

KINDS: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request is not what this endpoint reads"),
    "unknown-input": (400, "The model has no such input"),
    "key-missing": (401, "An API key is needed"),
    "loopback-only": (403, "This endpoint answers only to its own machine"),
    "slow-body": (408, "The body did not arrive in time"),
    "too-large": (413, "The request is too large"),
    "media-type": (415, "The media type is not read here"),
    "missing-input": (422, "A required input is missing"),
    "broken-input": (422, "An input cannot be read"),
    "not-explained": (422, "The answers cannot be explained"),
    "internal": (500, "The endpoint failed"),
    "overloaded": (503, "Too many requests are waiting"),
    "timeout": (504, "The answer took too long"),
}
"""Every `type` (after `urn:rayfuse:problem:`) with its status and title."""


class Problem(Exception):
    """A request that gets no answer, and why. `about` adds members such as `input` to the reply."""

    def __init__(self, kind: str, detail: str, **about: Any) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail, self.about = kind, detail, about
        self.status = KINDS[kind][0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.kind, self.detail, self.about)

    @property
    def body(self) -> dict[str, Any]:
        status, title = KINDS[self.kind]
        uri = f"urn:rayfuse:problem:{self.kind}"
        return {"type": uri, "title": title, "status": status, "detail": self.detail, **self.about}

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status == 503 else {}


def _rebuild(kind: str, detail: str, about: Mapping[str, Any]) -> Problem:
    return Problem(kind, detail, **about)


def plain(status: int, detail: str | None) -> dict[str, Any]:
    """The body of a problem that HTTP itself names: no such path, wrong method."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail or title}


def to_json(content: Any) -> bytes:
    """JSON for a reply. What a caller sent may hold halves of surrogate pairs, which UTF-8 has no bytes for."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")

"""HTTP errors as problem details (RFC 9457, `application/problem+json`)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 1
"""Value in seconds of the `Retry-After` header of a 503."""

PROBLEM_TYPES: dict[str, tuple[int, str]] = {
    "malformed": (400, "Malformed request"),
    "unknown-input": (400, "Unknown input"),
    "unauthorized": (401, "API key required"),
    "forbidden": (403, "Only loopback clients are allowed"),
    "request-timeout": (408, "Request body timed out"),
    "too-large": (413, "Request too large"),
    "media-type": (415, "Unsupported media type"),
    "misdirected": (421, "Host not allowed"),
    "missing-input": (422, "Required input missing"),
    "invalid-input": (422, "Invalid input"),
    "explanation-unavailable": (422, "Explanation unavailable"),
    "internal": (500, "Internal server error"),
    "overloaded": (503, "Too many requests"),
    "timeout": (504, "Prediction timed out"),
}
"""Status code and title by problem type, which is the `type` member without `urn:rayfuse:problem:`."""


class ProblemError(Exception):
    """A request that fails with a problem; `extensions` are additional members such as `input`."""

    def __init__(self, problem_type: str, detail: str, **extensions: Any) -> None:
        super().__init__(problem_type, detail)
        self.problem_type = problem_type
        """Key of PROBLEM_TYPES."""
        self.detail = detail
        """Description of the error and its remedy."""
        self.extensions = extensions
        """Additional members of the body."""
        self.status = PROBLEM_TYPES[problem_type][0]
        """HTTP status code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.problem_type, self.detail, self.extensions)

    @property
    def body(self) -> dict[str, Any]:
        """Members of the response's JSON object."""
        status, title = PROBLEM_TYPES[self.problem_type]
        uri = f"urn:rayfuse:problem:{self.problem_type}"
        return {"type": uri, "title": title, "status": status, "detail": self.detail, **self.extensions}

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status == 503 else {}


def _rebuild(problem_type: str, detail: str, extensions: Mapping[str, Any]) -> ProblemError:
    return ProblemError(problem_type, detail, **extensions)


def http_problem(status: int, detail: str | None) -> dict[str, Any]:
    """Build the body of a problem without a type: an unknown path or a wrong method."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail or title}


def to_json(content: Any) -> bytes:
    """Encode a response body as JSON; lone surrogates, which UTF-8 cannot encode, are replaced."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")

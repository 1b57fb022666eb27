"""Errors of the OpenAI routes, in the form that its clients read: {"error": {message, type, param, code}}."""

from typing import Any

from starlette.types import Scope

from rayfuse.decoding.request import ContextLengthError
from rayfuse.decoding.stream import DecoderBusyError
from rayfuse.errors import InvalidInputError
from rayfuse.serving.problems import RETRY_AFTER, ProblemError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "rate_limit_error",
    504: "timeout_error",
}


class OpenAIError(Exception):
    """A request that fails with an error in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, param, code)
        self.status = status
        """HTTP status code."""
        self.message = message
        """Description of the error and its remedy."""
        self.param = param
        """Path of the request's parameter that is wrong."""
        self.code = code
        """Machine-readable kind of the error."""

    @property
    def body(self) -> dict[str, Any]:
        """Members of the response's JSON object."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else {}


def too_slow(timeout: float) -> OpenAIError:
    """Return the error of a reply that has not ended within `timeout` seconds."""
    return OpenAIError(
        504, f"the reply did not end within {timeout:g} s (limits.request_timeout)", None, "timeout"
    )


def is_openai_path(scope: Scope) -> bool:
    """Return whether the path of a request is below /v1 of an endpoint."""
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path == "/v1" or path.startswith("/v1/")


def to_openai_error(error: Exception) -> OpenAIError | None:
    """Return an expected error in OpenAI's form; None for one that is a bug."""
    if isinstance(error, OpenAIError):
        return error
    if isinstance(error, ProblemError):
        # A full queue is a 429 on these routes: OpenAI's clients wait for Retry-After and try again.
        status = 429 if error.problem_type == "overloaded" else error.status
        return OpenAIError(status, error.detail, error.extensions.get("input"), error.problem_type)
    if isinstance(error, InvalidInputError):
        code = "context_length_exceeded" if isinstance(error, ContextLengthError) else "invalid_value"
        return OpenAIError(400, error.reason, error.input_name, code)
    if isinstance(error, DecoderBusyError):
        return OpenAIError(429, str(error), None, "rate_limit_exceeded")
    return None

"""Cross-origin requests (CORS): web pages of other origins that call an endpoint from the browser."""

from collections.abc import Callable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_METHODS = ("GET", "POST")
_STAINLESS = (
    "Arch",
    "Helper-Method",
    "Lang",
    "OS",
    "Package-Version",
    "Retry-Count",
    "Runtime",
    "Runtime-Version",
    "Timeout",
)
_REQUEST_HEADERS = ("Authorization", "Content-Type", *(f"X-Stainless-{name}" for name in _STAINLESS))
"""The last ones are those of OpenAI's client in browsers."""
_RESPONSE_HEADERS = ("Retry-After", "Server-Timing")


class Cors:
    """Middleware that allows the origins of the current settings; without any it does nothing."""

    def __init__(self, app: ASGIApp, origins: Callable[[], Sequence[str]]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or respond to a preflight request."""
        origins = self._origins()
        await (self._allow(origins) if origins else self._app)(scope, receive, send)

    def _allow(self, origins: Sequence[str]) -> ASGIApp:
        return CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
            allow_private_network=True,
        )

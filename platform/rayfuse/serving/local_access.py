"""Access for this machine only: endpoints without API keys, and Ray Serve's own routes.

The client must be on loopback, and the `Host` header must name this machine. A web page whose name resolves to
127.0.0.1 (DNS rebinding) sends its own name, so its requests are rejected although they come from loopback.
"""

import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rayfuse.formatting import truncate
from rayfuse.serving.problems import MEDIA_TYPE, ProblemError, to_json

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_LOCAL_HOST = re.compile(rf"({'|'.join(map(re.escape, LOCAL_HOSTS))})(:\d+)?", re.IGNORECASE)


class LocalOnly:
    """Middleware that rejects requests from elsewhere where `applies` returns true for their scope."""

    def __init__(
        self,
        app: ASGIApp,
        applies: Callable[[Scope], bool],
        remedy: str,
        respond: Callable[[Scope, ProblemError], Response] | None = None,
    ) -> None:
        self._app, self._applies, self._remedy = app, applies, remedy
        self._respond = respond or _respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or respond with a problem."""
        if scope["type"] != "lifespan" and self._applies(scope):
            try:
                check_local(scope, self._remedy)
            except ProblemError as problem:
                await self._respond(scope, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _respond(scope: Scope, problem: ProblemError) -> Response:
    return Response(to_json(problem.body), problem.status, media_type=MEDIA_TYPE)


def check_local(scope: Scope, remedy: str) -> None:
    """Raise ProblemError for a request that does not come from this machine, or names another one as its host."""
    if not _is_loopback(scope):
        raise ProblemError("forbidden", f"only requests from loopback are allowed; {remedy}")
    hosts = Headers(scope=scope).getlist("host")
    if not hosts or not all(map(_LOCAL_HOST.fullmatch, hosts)):
        given = ", ".join(map(truncate, hosts)) or "missing"
        raise ProblemError("misdirected", f"Host: {given}; send {' or '.join(LOCAL_HOSTS)}, or {remedy}")


def _is_loopback(scope: Scope) -> bool:
    """Return whether the client's address is a loopback address, or the connection has no address."""
    client = scope.get("client")
    if not client:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False

"""HTTP connections of uvicorn whose headers are limited in time and size.

uvicorn waits for headers without end, and httptools keeps what it has got of them in memory.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rayfuse.serving.problems import MEDIA_TYPE, http_problem, to_json


class HeaderLimitProtocol(HttpToolsProtocol):
    """A connection that is closed where headers take too long, or are too large."""

    header_timeout = 10.0
    """Seconds from the first byte of a request to the end of its headers; also from connecting to the first byte."""
    max_header_size = 65_536
    """Bytes of the headers; what the client sends with their first byte is not counted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_size: int | None = None  # while headers are incomplete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the headers."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of the headers, and parse them."""
        if self._header_size is not None:
            self._header_size += len(data)
        super().data_received(data)
        if (self._header_size or 0) > self.max_header_size:
            self._reject(431, f"the headers exceed {self.max_header_size} bytes")

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._header_size = 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        """End the limits: the body has its own."""
        self._header_size = None
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout, self._expire)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expire(self) -> None:
        self._header_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # the headers are those of a pipelined request: the one before gets its response
        elif self._header_size is None:
            self.transport.close()
        else:
            self._reject(408, f"the headers were not received within {self.header_timeout:g} s")

    def _reject(self, status: int, detail: str) -> None:
        if self.transport.is_closing():
            return
        body = to_json(http_problem(status, detail))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        self.transport.close()

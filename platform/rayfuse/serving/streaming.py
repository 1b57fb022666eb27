"""Responses that end with their client: streams of server-sent events, and work that a disconnect cancels."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rayfuse.decoding.request import Piece
from rayfuse.serving.problems import to_json

EVENTS = "text/event-stream"

Result = TypeVar("Result")


class Reply(Protocol):
    """The pieces of one reply. The last has a finish reason; leaving the loop, or `cancel`, ends the request."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    def cancel(self) -> None:
        """End the request; a reply that has ended is not affected."""
        ...


class EventStream(StreamingResponse):
    """A stream of events, which ends replies as soon as the client disconnects, also while they wait for a slot."""

    def __init__(self, content: AsyncIterator[bytes], replies: Sequence[Reply]) -> None:
        super().__init__(content, media_type=EVENTS, headers={"Cache-Control": "no-cache"})
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        listener = asyncio.ensure_future(self._cancel_when_disconnected(receive))
        try:
            await super().__call__(scope, receive, send)
        finally:
            listener.cancel()
            cancel(self._replies)

    async def _cancel_when_disconnected(self, receive: Receive) -> None:
        await _disconnect(receive)
        cancel(self._replies)


def encode_event(content: Any, name: str = "") -> bytes:
    """Return a server-sent event with JSON as its data."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + to_json(content) + b"\n\n"


async def merge(replies: Sequence[Reply], timeout: float) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of several replies as they come, each with the number of its reply.

    Raises TimeoutError if they have not ended within `timeout` seconds, and what ended a reply. All replies are
    cancelled at the end.
    """
    pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

    async def read(index: int, reply: Reply) -> None:
        try:
            async for piece in reply:
                pieces.put_nowait((index, piece))
        except Exception as error:  # noqa: BLE001 - raised below
            pieces.put_nowait((index, error))

    tasks = [asyncio.create_task(read(index, reply)) for index, reply in enumerate(replies)]
    deadline = time.monotonic() + timeout
    try:
        open_replies = len(replies)
        while open_replies:
            index, outcome = await asyncio.wait_for(pieces.get(), max(0.0, deadline - time.monotonic()))
            if isinstance(outcome, BaseException):
                raise outcome
            open_replies -= outcome.finish_reason is not None
            yield index, outcome
    finally:
        for task in tasks:
            task.cancel()
        cancel(replies)


async def until_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Await work, and cancel it as soon as the client disconnects, which raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()


def cancel(replies: Sequence[Reply]) -> None:
    """End several requests."""
    for reply in replies:
        reply.cancel()


async def _disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass

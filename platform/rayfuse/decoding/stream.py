"""A decoder in a separate thread, and its replies as asynchronous streams."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from rayfuse.decoding.request import Completion, DecodeRequest, Piece, join_pieces
from rayfuse.errors import RayfuseError, ResourceError

if TYPE_CHECKING:
    from rayfuse.decoding.decoder import Decoder


class DecoderBusyError(ResourceError):
    """More requests or tokens than a decoder's queue takes; worth another try later."""


@dataclass(frozen=True)
class ReplyStats:
    """Tokens and times of a reply that has ended."""

    prompt_tokens: int
    """Positions of the prompt, embeddings included."""
    reused_tokens: int
    """Positions of the prompt whose keys and values came from an earlier request."""
    reply_tokens: int
    first_token_seconds: float | None
    """Seconds from the request to the first piece with a token; None if there was none."""
    seconds: float
    """Seconds from the request to its end."""
    finish_reason: str
    """That of the last piece, or `error`."""


class _OpenReply:
    """A reply that has not ended."""

    def __init__(self, stream: "ReplyStream", tokens: int) -> None:
        self.stream = stream
        self.tokens = tokens
        """Positions of its prompt and its longest reply."""
        self._opened = time.monotonic()
        self._first: float | None = None
        self._count = self._reused = 0

    def add(self, outcome: Piece | BaseException) -> ReplyStats | None:
        """Count a piece; return the statistics after the last one."""
        seconds = time.monotonic() - self._opened
        reason: str | None = "error"
        if isinstance(outcome, Piece):
            self._count += len(outcome.token_ids)
            self._reused = max(self._reused, outcome.reused_tokens)
            if self._count and self._first is None:
                self._first = seconds
            reason = outcome.finish_reason
        if reason is None:
            return None
        return ReplyStats(self.stream.prompt_tokens, self._reused, self._count, self._first, seconds, reason)


class ReplyStream:
    """The pieces of one reply: iterate over them once, or await `completion`. Leaving the loop cancels the request."""

    def __init__(self, request_id: int, prompt_tokens: int, cancel: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        """Positions of the prompt, embeddings included."""
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._outcomes: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._ended = self._cancelled = False

    def cancel(self) -> None:
        """End the request; its slot is free within two steps. A reply that has ended is not affected."""
        if not self._ended and not self._cancelled:
            self._cancelled = True
            self._cancel(self.request_id)

    async def completion(self) -> Completion:
        """Return the whole reply; raise the error that ended it."""
        return join_pieces([piece async for piece in self])

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while not self._ended:
                outcome = await self._outcomes.get()
                if isinstance(outcome, BaseException):
                    self._ended = True
                    raise outcome
                self._ended = outcome.finish_reason is not None
                yield outcome
        finally:
            self.cancel()

    def put(self, outcome: Piece | BaseException) -> bool:
        """Append an outcome from the decoder's thread; return False if the event loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._outcomes.put_nowait, outcome)
        except RuntimeError:
            return False
        return True


class DecoderThread:
    """Runs the steps of a decoder in a thread, for streams of one or several event loops.

    `max_waiting`: requests without a slot that the queue takes; `max_waiting_tokens`: positions of the prompts and
    replies of all requests together; `observe`: called in that thread with the statistics of each reply that ends.
    """

    def __init__(
        self,
        decoder: "Decoder",
        *,
        max_waiting: int = 64,
        max_waiting_tokens: int | None = None,
        observe: Callable[[ReplyStats], None] = lambda _: None,
    ) -> None:
        self.decoder = decoder
        self._observe = observe
        self.max_waiting = max_waiting
        """Requests without a slot that the queue takes."""
        self.consecutive_failures = 0
        """Steps that have failed since the last success."""
        self._step_started: float | None = None
        self._max_waiting_tokens = max_waiting_tokens
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._replies: dict[int, _OpenReply] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def open(self, request: DecodeRequest) -> ReplyStream:
        """Queue a request and return its stream; call it from an event loop.

        Raises InvalidInputError if the request cannot be decoded, and DecoderBusyError if the queue is full.
        """
        sequence = self.decoder.prepare(request)
        stream = ReplyStream(sequence.id, len(sequence.prompt), self.cancel)
        tokens = len(sequence.prompt) + sequence.limit
        with self._lock:
            self._check_queue(tokens)
            self._replies[sequence.id] = _OpenReply(stream, tokens)
        self._inbox.put(lambda: self.decoder.enqueue(sequence))
        return stream

    def cancel(self, request_id: int) -> None:
        """End a request; its slot is free within two steps."""
        self._inbox.put(lambda: self.decoder.cancel(request_id))

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        with self._lock:
            self._closed = True
        self._inbox.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Return True until the thread has ended, for health checks."""
        return self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """Seconds since the current step began; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def pending(self) -> int:
        """Number of requests that have not ended, with and without a slot."""
        with self._lock:
            return len(self._replies)

    def _check_queue(self, tokens: int) -> None:
        if self._closed:
            raise DecoderBusyError("the decoder has been closed; send the request to another replica")
        if len(self._replies) >= self.decoder.slots + self.max_waiting:
            raise DecoderBusyError(
                f"{len(self._replies)} requests are pending, and the queue takes {self.max_waiting} beyond the "
                f"{self.decoder.slots} slots; try again later"
            )
        queued = sum(reply.tokens for reply in self._replies.values())
        limit = self._max_waiting_tokens
        if limit is not None and self._replies and queued + tokens > limit:
            raise DecoderBusyError(
                f"requests of {queued} tokens are pending, and {tokens} more exceed the limit of {limit}; try again later"
            )

    def _run(self) -> None:
        while self._take_commands():
            self._step_started = time.monotonic()
            try:
                events = self.decoder.step()
            except Exception as error:  # noqa: BLE001 - raised by the streams; the model may fail in any way
                self.consecutive_failures += 1
                self._fail(error)
                continue
            finally:
                self._step_started = None
            self.consecutive_failures = 0
            for request_id, outcome in events:
                self._send(request_id, outcome)
        for request_id, piece in self.decoder.reset():
            self._send(request_id, piece)

    def _take_commands(self) -> bool:
        """Run what has been queued, and wait for it while the decoder is idle; return False at the end."""
        while True:
            try:
                command = self._inbox.get(block=not self.decoder.busy)
            except Empty:
                return True
            if command is None:
                return False
            command()

    def _send(self, request_id: int, outcome: Piece | BaseException) -> None:
        with self._lock:
            reply = self._replies.get(request_id)
            stats = None if reply is None else reply.add(outcome)
            if stats is not None:
                del self._replies[request_id]
        if reply is None:
            return
        if stats is not None:
            self._observe(stats)
        if not reply.stream.put(outcome) and stats is None:
            self.decoder.cancel(request_id)

    def _fail(self, error: Exception) -> None:
        """Report an error of the model to all requests, and start afresh."""
        failed = self.decoder.reset()
        shown = error if isinstance(error, RayfuseError) else RayfuseError(f"the model failed: {error}")
        for request_id, _ in failed:
            self._send(request_id, shown)

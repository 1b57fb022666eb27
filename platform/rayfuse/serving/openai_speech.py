"""Speech under the OpenAI protocol: the form of a request, and the streams of its reply.

The forms are those of https://platform.openai.com/docs/api-reference/audio/createSpeech.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from typing import ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rayfuse.serving.openai_errors import OpenAIError, too_slow
from rayfuse.serving.openai_requests import ModelRequest
from rayfuse.serving.speech_engine import SpeechParams, SpeechStream
from rayfuse.serving.streaming import EVENTS, encode_event, until_disconnected
from rayfuse.speech.audio_encoding import FORMATS

MAX_INPUT_CHARACTERS = 4096
"""Largest `input`."""


class _CustomVoice(BaseModel):
    """A voice as an object."""

    model_config = ConfigDict(extra="forbid")

    id: str


class SpeechRequest(ModelRequest):
    """Body of POST /audio/speech."""

    neutral: ClassVar[frozenset[str]] = frozenset({"user"})

    input: str = Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)
    voice: str | _CustomVoice | None = None
    """A speaker of the voice; the first one by default."""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    instructions: str | None = None
    """Not supported: a VITS voice has one manner of speaking."""
    stream_format: Literal["audio", "sse"] = "audio"

    def params(self) -> SpeechParams:
        """Return the text and how it is spoken. Raises OpenAIError for instructions."""
        if self.instructions:
            raise OpenAIError(
                400,
                "instructions: this voice has one manner of speaking; leave them out",
                "instructions",
                "unsupported_parameter",
            )
        speaker = self.voice.id if isinstance(self.voice, _CustomVoice) else self.voice
        return SpeechParams(self.input, self.response_format, self.speed, speaker)


class SpeechModel(Protocol):
    """A voice that the route serves under a name."""

    @property
    def created(self) -> int:
        """Unix time at which the model was created."""
        ...

    def open(self, params: SpeechParams) -> SpeechStream:
        """Start to speak a text. Raises InvalidInputError for an unknown speaker."""
        ...


async def speech_response(
    request: Request,
    stream: SpeechStream,
    body: SpeechRequest,
    timeout: float,
    to_error: Callable[[Exception], OpenAIError],
) -> Response:
    """Return the response to a request once its first sentence is spoken, so that errors have a status.

    timeout: seconds until the end of the response; to_error: returns an exception in OpenAI's form. Raises OpenAIError
    if the first sentence takes longer.
    """
    deadline = time.monotonic() + timeout
    try:
        async with asyncio.timeout(timeout):
            first = await until_disconnected(request, anext(stream.pieces))
    except TimeoutError:
        raise too_slow(timeout) from None
    finally:
        if not stream.has_started:
            await stream.close()
    pieces = _until(deadline, timeout, first, stream)
    if body.stream_format == "sse":
        return SpeechResponse(_events(pieces, stream, to_error), stream, EVENTS)
    return SpeechResponse(pieces, stream, FORMATS[body.response_format].media_type)


class SpeechResponse(StreamingResponse):
    """Sound that is sent as it is spoken; the work ends with the sentence in which the client disconnects."""

    def __init__(self, content: AsyncIterator[bytes], stream: SpeechStream, media_type: str) -> None:
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the sound."""
        try:
            await until_disconnected(Request(scope, receive), self.stream_response(send))
        except ClientDisconnect:
            pass
        finally:
            await self._stream.close()


async def _until(deadline: float, timeout: float, first: bytes, stream: SpeechStream) -> AsyncIterator[bytes]:
    """Yield the pieces of a file. Raises OpenAIError if they take longer than until the deadline."""
    yield first
    while True:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                piece = await anext(stream.pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise too_slow(timeout) from None
        yield piece


async def _events(
    pieces: AsyncIterator[bytes], stream: SpeechStream, to_error: Callable[[Exception], OpenAIError]
) -> AsyncIterator[bytes]:
    """Yield the events that carry a file; an error behind the beginning is the last one."""
    try:
        async for piece in pieces:
            audio = base64.b64encode(piece).decode()
            yield encode_event({"type": "speech.audio.delta", "audio": audio})
        count = stream.num_phonemes
        usage = {"input_tokens": count, "output_tokens": 0, "total_tokens": count}
        yield encode_event({"type": "speech.audio.done", "usage": usage})
    except Exception as raised:  # noqa: BLE001 - logged with its traceback
        yield encode_event(to_error(raised).body)

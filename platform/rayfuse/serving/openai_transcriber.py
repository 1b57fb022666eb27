"""Transcripts of sounds of any length, in windows of the length that a speech model reads."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayfuse.decoding.request import Completion, FinishReason, Piece
from rayfuse.decoding.stream import ReplyStream
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.transcripts import Segment
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_decoder import DecoderGenerator
from rayfuse.serving.openai_generator import ChatMessage, FilePart, GenerationRequest
from rayfuse.serving.streaming import Reply

Split = Callable[[Sequence[int], float, bool], tuple[list[Segment], float]]

_EXTRA_SECONDS = 0.1
"""Length of the sound behind a window that is read with it, to know whether there is any."""


@dataclass(frozen=True)
class Window:
    """A part of a sound that is as long as the model reads, or the rest of it."""

    start: float
    """Seconds from the beginning of the sound."""
    samples: np.ndarray
    """Float32 (samples,)."""
    sample_rate: int
    is_last: bool
    """True if the sound ends with it."""

    @property
    def seconds(self) -> float:
        """Return its length."""
        return len(self.samples) / self.sample_rate

    def to_wav(self) -> bytes:
        """Return the samples as a WAV file, which the engine reads without a change."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.samples, self.sample_rate, format="WAV", subtype="FLOAT")
        return file.getvalue()


class SoundReader:
    """Reads windows of sounds as an input of a served model does: `name` is that of an audio input."""

    def __init__(self, engine: InferenceEngine, name: str) -> None:
        self._engine = engine
        self._name = name
        options: Any = engine.predictor.job.inputs[name]
        self._seconds, self._rate = options.max_seconds, options.sample_rate

    async def read(self, content: bytes, start: float) -> Window:
        """Return the window of a file from `start` on. Raises ProblemError if it cannot be read."""
        with self._engine.admit():
            samples = await self._engine.decode_sound(
                self._name, content, start, self._seconds + _EXTRA_SECONDS
            )
        most = round(self._seconds * self._rate)
        return Window(start, samples[:most], self._rate, len(samples) <= most)


class Transcriber(DecoderGenerator):
    """Transcripts of a speech model.

    A sound that is longer than its windows is transcribed with time stamps, window by window; a segment that a window
    cuts off is transcribed again at the beginning of the next one (Radford et al., 2022, section 3.8). Windows are not
    conditioned on the text before them, so that an error in one does not spread.
    """

    def __init__(self, reader: SoundReader, split: Split, *arguments: Any, **options: Any) -> None:
        """`split`: see `TimeStamps.split`. Other arguments are those of `DecoderGenerator`."""
        super().__init__(*arguments, **options)
        self.reader = reader
        self.split = split

    async def open(self, request: GenerationRequest) -> Reply:
        """Start a transcript. Raises InvalidInputError, ProblemError or DecoderBusyError."""
        sound = _only_sound(request)
        if sound is None:
            return await super().open(request)
        window = await self.reader.read(sound, 0.0)
        if not len(window.samples):
            raise InvalidInputError("the audio file has no samples", "file")
        if window.is_last and not request.time_stamps:
            return await super().open(request)
        return WindowedReply(self, request, sound, window, await self.open_window(request, window))

    async def open_window(self, request: GenerationRequest, window: Window) -> ReplyStream:
        """Start the transcript of a window, with time stamps. Raises as `open` does."""
        wav = await asyncio.to_thread(window.to_wav)
        message = ChatMessage("user", (FilePart("audio", wav),))
        return await self._start(replace(request, messages=(message,), time_stamps=True))


class WindowedReply:
    """The transcript of a sound, with a piece for each of its windows."""

    def __init__(
        self,
        transcriber: Transcriber,
        request: GenerationRequest,
        sound: bytes,
        window: Window,
        stream: ReplyStream,
    ) -> None:
        """`stream`: the transcript of the first window, which has been started."""
        self._transcriber = transcriber
        self._request = request
        self._sound = sound
        self._window = window
        self._stream = stream
        self._is_cancelled = False

    def cancel(self) -> None:
        """End the request, so that no other window is started; a reply that has ended is not affected."""
        self._is_cancelled = True
        self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        prompt_tokens = 0
        written, is_last = False, False
        reason: FinishReason = "stop"
        while not is_last:
            done = await self._stream.completion()
            prompt_tokens, reason = prompt_tokens + done.prompt_tokens, done.finish_reason
            segments, seconds, is_last = self._split(done)
            text = " ".join(one.text for one in segments)
            yield Piece(" " * (written and bool(text)) + text, done.token_ids, segments=tuple(segments))
            written |= bool(text)
            is_last = is_last or self._is_cancelled or not await self._open_next(seconds)
        yield Piece(finish_reason=reason, prompt_tokens=prompt_tokens)

    def _split(self, done: Completion) -> tuple[list[Segment], float, bool]:
        """Return the segments of the window, where the next one begins, and whether there is none."""
        window = self._window
        is_whole = window.is_last and done.finish_reason != "length"
        found, seconds = self._transcriber.split(done.token_ids, window.seconds, is_whole)
        shifted = [
            Segment(round(one.start + window.start, 2), round(one.end + window.start, 2), one.text)
            for one in found
        ]
        return shifted, window.start + seconds, window.is_last and seconds >= window.seconds

    async def _open_next(self, start: float) -> bool:
        """Start the transcript of the next window; return False if the sound has ended."""
        self._window = await self._transcriber.reader.read(self._sound, start)
        if not len(self._window.samples):
            return False
        self._stream = await self._transcriber.open_window(self._request, self._window)
        if self._is_cancelled:  # meanwhile
            self._stream.cancel()
        return True


def _only_sound(request: GenerationRequest) -> bytes | None:
    """Return the sound of a request that has nothing else; None for other requests, which the task checks."""
    parts = [part for message in request.messages or () for part in message.parts]
    match parts:
        case [FilePart(kind="audio", content=content)]:
            return content
    return None

"""The engine of an endpoint that speaks: texts to encoded sound, sentence by sentence, within the endpoint's limits."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import AsyncGeneratorType
from typing import Any, cast

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.serving.admission import AdmittingEngine
from rayfuse.serving.metrics import EndpointMetrics, SpeechStats
from rayfuse.serving.settings import Settings
from rayfuse.speech.audio_encoding import AudioEncoder
from rayfuse.speech.voice import Samples, Voice

MAX_CONSECUTIVE_FAILURES = 5
"""Failures of the voice in a row after which a replica is unhealthy."""

_PAUSE_SECONDS = 0.25
"""Silence between two sentences, at speed 1."""
_STALL_SECONDS = 60.0

_log = logging.getLogger("rayfuse.serving")


@dataclass(frozen=True)
class SpeechParams:
    """A text and how it is spoken."""

    text: str
    audio_format: str
    """Format of the sound, of `rayfuse.speech.audio_encoding.FORMATS`."""
    speed: float = 1.0
    """Rate of speech; 1.0 is the voice's own."""
    speaker: str | None = None
    """One of the voice's speakers; None: the first."""


class SpeechEngine(AdmittingEngine):
    """A loaded voice that serves concurrent requests. All methods run in one event loop.

    Sentences of all requests take turns: a short text does not wait for the end of a long one.
    """

    def __init__(
        self, voice: Voice, settings: Settings, num_threads: int = 1, metrics: EndpointMetrics | None = None
    ) -> None:
        """Speak `num_threads` sentences at once."""
        self.voice = voice
        self.settings = settings
        self.metrics = metrics or EndpointMetrics()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="speak")
        self._running: dict[int, float] = {}
        self._ids = itertools.count()
        self.consecutive_failures = 0
        """Failures of the voice since the last sentence that it spoke."""

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version` of the voice."""
        name = self.settings.model or self.voice.description.name
        return {"name": name, "version": self.settings.version}

    @property
    def speakers(self) -> tuple[str, ...]:
        """Values of `voice` in a request: the speakers, or the name of the model for a single one."""
        return tuple(self.voice.description.speakers) or (str(self.model["name"]),)

    def update_settings(self, settings: Settings) -> None:
        """Replace the limits and keys; active requests finish with those that they started with."""
        self.settings = settings

    def check_health(self) -> None:
        """Raise RuntimeError where the replica must be restarted."""
        if self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise RuntimeError(f"the voice failed {self.consecutive_failures} times in a row")
        busy = time.monotonic() - min(self._running.values(), default=time.monotonic())
        if busy > max(_STALL_SECONDS, 2 * self.settings.request_timeout):
            raise RuntimeError(f"a sentence has been spoken for {busy:.0f} s")

    def close(self) -> None:
        """Stop the threads after their sentences; requests that wait are cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def open(self, params: SpeechParams) -> "SpeechStream":
        """Start to speak a text. Raises InvalidInputError for an unknown speaker."""
        if params.speaker is not None and params.speaker not in self.speakers:
            known = ", ".join(self.speakers[:20]) + (", …" if len(self.speakers) > 20 else "")
            raise InvalidInputError(f"no voice {params.speaker!r}; use one of: {known}", "voice")
        return SpeechStream(self, params)

    async def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread; a call that has not started is cancelled with this one."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._observe, call, arguments)

    def _observe(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        number = next(self._ids)
        self._running[number] = time.monotonic()
        try:
            return call(*arguments)
        except Exception:
            self.consecutive_failures += 1
            raise
        finally:
            del self._running[number]


class SpeechStream:
    """A text that is being spoken: `pieces`, joined, are the file. Cancelling ends the work with the current sentence."""

    def __init__(self, engine: SpeechEngine, params: SpeechParams) -> None:
        self._engine, self._params = engine, params
        self._started = time.monotonic()
        self._first_piece: float | None = None
        self._audio_seconds = 0.0
        self.num_phonemes = 0
        """Phonemes that have been spoken."""
        self.pieces = cast("AsyncGeneratorType[bytes, None]", self._speak())
        """The pieces of the file. Raises InvalidInputError, before the first one, for a text without any phoneme."""

    async def close(self) -> None:
        """End the work; a piece that is being awaited ends it itself, as its task is cancelled."""
        if not self.pieces.ag_running:
            await self.pieces.aclose()

    @property
    def has_started(self) -> bool:
        """True once the first piece is there."""
        return self._first_piece is not None

    async def _speak(self) -> AsyncGenerator[bytes, None]:
        reason = "cancelled"
        with self._engine.admit():
            try:
                async for piece in self._encoded():
                    if self._first_piece is None:
                        self._first_piece = time.monotonic()
                    yield piece
                reason = "stop"
            except Exception:
                reason = "error"
                raise
            finally:
                self._engine.metrics.record_speech(self._stats(reason))

    async def _encoded(self) -> AsyncGenerator[bytes, None]:
        engine, params = self._engine, self._params
        sentences = await engine.run(engine.voice.sentences, params.text)
        encoder = AudioEncoder(params.audio_format, engine.voice.sample_rate, is_whole=len(sentences) == 1)
        for sentence in sentences:
            piece = await engine.run(self._speak_sentence, sentence, encoder)
            if piece:
                yield piece
        if not self.num_phonemes:
            raise InvalidInputError("the text has no character that can be spoken; send words", "input")
        rest = await engine.run(encoder.finish)
        if rest:
            yield rest

    def _speak_sentence(self, sentence: str, encoder: AudioEncoder) -> bytes:
        voice, params = self._engine.voice, self._params
        phonemes = voice.phonemes(sentence)
        if not phonemes:
            return b""
        samples = voice.synthesize(phonemes, speed=params.speed, speaker=params.speaker)
        if self.num_phonemes:
            samples = np.concatenate([_silence(voice.sample_rate, params.speed), samples])
        self._engine.consecutive_failures = 0
        self.num_phonemes += len(phonemes)
        self._audio_seconds += samples.size / voice.sample_rate
        return encoder.encode(samples)

    def _stats(self, reason: str) -> SpeechStats:
        now, first = time.monotonic(), self._first_piece
        return SpeechStats(
            reason=reason,
            characters=len(self._params.text),
            audio_seconds=self._audio_seconds,
            seconds=now - self._started,
            first_audio_seconds=None if first is None else first - self._started,
        )


def _silence(sample_rate: int, speed: float) -> Samples:
    return np.zeros(int(_PAUSE_SECONDS * sample_rate / speed), dtype=np.float32)

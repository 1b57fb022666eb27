"""Encode samples to files piece by piece, so that they can be sent while a text is still being spoken."""

import io
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from rayfuse.speech.voice import Samples

PCM_RATE = 24_000
"""Samples per second of `pcm`, as OpenAI's clients expect: it has no header that states the rate."""

_OPUS_RATE = 24_000


@dataclass(frozen=True)
class AudioFormat:
    """A format of files."""

    media_type: str
    """Media type of HTTP."""
    container: str = ""
    """Format of FFmpeg; "" for samples without a container."""
    codec: str = ""
    """Encoder of FFmpeg."""
    rate: int | None = None
    """Samples per second; None: those of the voice."""
    grows: bool = True
    """False for a header that players need to be complete, which is only known at the end."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of the container."""
    codec_options: tuple[tuple[str, str], ...] = ()
    """Options of the encoder."""


FORMATS = {
    "mp3": AudioFormat("audio/mpeg", "mp3", "libmp3lame", options=(("id3v2_version", "0"),)),
    "opus": AudioFormat("audio/ogg", "ogg", "libopus", _OPUS_RATE, codec_options=(("application", "voip"),)),
    "aac": AudioFormat("audio/aac", "adts", "aac"),
    "flac": AudioFormat("audio/flac", "flac", "flac", grows=False),
    "wav": AudioFormat("audio/wav", "wav", "pcm_s16le"),
    "pcm": AudioFormat("audio/pcm", rate=PCM_RATE),
}
"""Formats by the names of OpenAI's protocol."""


class AudioEncoder:
    """A file that grows: its pieces, joined, are the file. Mono, 16 bits where the format has bits."""

    def __init__(self, name: str, sample_rate: int, *, is_whole: bool = False) -> None:
        """Start a file in a format of FORMATS, of samples at `sample_rate` per second.

        is_whole: `finish` returns the whole file, with a complete header. Otherwise that of a wav file states no number
        of samples, which is not known when it is sent.
        """
        self.format = FORMATS[name]
        self._source_rate = sample_rate
        self._rate = self.format.rate or sample_rate
        self._written: _Pieces | _Whole = _Pieces() if self.format.grows and not is_whole else _Whole()
        self._container: Any = None
        self._position = 0
        if self.format.container:
            self._open()

    def encode(self, samples: Samples) -> bytes:
        """Append samples, float32 from -1 to 1, and return the next piece of the file, which may be empty."""
        scaled = np.rint(_resample(samples, self._source_rate, self._rate) * 32767).astype("<i2")
        if self._container is None:
            return scaled.tobytes()
        import av

        frame = av.AudioFrame.from_ndarray(scaled[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._position
        self._position += scaled.size
        self._mux(frame)
        return self._written.take()

    def finish(self) -> bytes:
        """Return the last piece of the file."""
        if self._container is None:
            return b""
        self._mux(None)
        self._container.close()
        return self._written.getvalue() if isinstance(self._written, _Whole) else self._written.take()

    def _open(self) -> None:
        import av

        self._container = av.open(
            self._written, "w", format=self.format.container, container_options=dict(self.format.options)
        )
        self._stream: Any = self._container.add_stream(
            self.format.codec, rate=self._rate, layout="mono", options=dict(self.format.codec_options)
        )

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


class _Pieces:
    """A file that can only be written, so that FFmpeg does not return to its header."""

    def __init__(self) -> None:
        self._content = bytearray()

    def write(self, content: bytes) -> int:
        self._content += content
        return len(content)

    def take(self) -> bytes:
        taken = bytes(self._content)
        self._content.clear()
        return taken


class _Whole(io.BytesIO):
    """A file whose header FFmpeg completes at its end."""

    def take(self) -> bytes:
        return b""


def _resample(samples: Samples, source: int, target: int) -> Samples:
    if source == target:
        return samples
    from scipy.signal import resample_poly

    common = gcd(source, target)
    resampled: Samples = resample_poly(samples, target // common, source // common)
    return np.clip(resampled, -1.0, 1.0).astype(np.float32)

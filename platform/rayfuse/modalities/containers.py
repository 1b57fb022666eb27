"""Open what FFmpeg reads, from bytes that a stranger may have sent."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

from rayfuse.errors import BadInput

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,gif,apng,"
    "wav,w64,aiff,au,caf,mp3,aac,ac3,eac3,flac,amr,amrnb,amrwb,ape,wv,tta,dv,mxf,ivf,obu,rm,swf,nut"
)
"""Formats that hold what they show: a playlist could name any file of this machine, or of its network."""
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
_ALL_THERE = 0.98
_RATE = 25  # frames per second, of streams that do not tell


class Unreadable(BadInput):
    """FFmpeg can make nothing of these bytes."""


@contextmanager
def opened(content: bytes, what: str) -> Iterator[Any]:
    """A PyAV container; any failure of FFmpeg's inside becomes Unreadable, where `what` names the file."""
    import av

    try:
        with av.open(io.BytesIO(content), options=_OPTIONS, metadata_errors="replace") as container:
            yield container
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001 - FFmpeg's decoders raise many kinds for broken files
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise Unreadable(f"not a readable {what}, or it is cut off: {reason}") from None


class Clock(NamedTuple):
    """When the packets of a stream are shown: seconds from the first one on, in order."""

    times: list[float]
    offset: Fraction | None
    """When the first one is shown; None where packets tell no time, and come at the stream's rate."""
    rate: float

    def time_of(self, frame: Any, number: int) -> float:
        """When a decoded frame is shown; `number` counts from 0."""
        if self.offset is None or frame.pts is None:
            return number / self.rate
        return float(frame.pts * frame.time_base - self.offset)


def packet_clock(stream: Any, seconds: float, what: str) -> Clock:
    """The packets of the first `seconds`. Files need not tell how long they are, and this decodes nothing.

    Raises BadInput where a part of the file that its own index promises is not there.
    """
    stamps: list[Fraction] = []
    rate = float(getattr(stream, "average_rate", None) or _RATE)
    count = 0
    for packet in stream.container.demux(stream):
        if not packet.size:
            continue
        count += 1
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            stamps.append(stamp * packet.time_base)
        if stamps and stamps[-1] - stamps[0] > 2 * seconds:  # packets come nearly in order
            break
    else:
        if count < _ALL_THERE * stream.frames:
            raise BadInput(f"the {what} is cut off: {count} of its {stream.frames} parts are there")
    if len(stamps) < count:
        return Clock([i / rate for i in range(count) if i / rate <= seconds], None, rate)
    offset = min(stamps, default=Fraction(0))
    times = (float(stamp - offset) for stamp in sorted(stamps))
    return Clock([time for time in times if time <= seconds], offset, rate)

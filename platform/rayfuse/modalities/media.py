"""Open untrusted audio and video files with FFmpeg."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

from rayfuse.errors import InvalidInputError

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,gif,apng,"
    "wav,w64,aiff,au,caf,mp3,aac,ac3,eac3,flac,amr,amrnb,amrwb,ape,wv,tta,dv,mxf,ivf,obu,rm,swf,nut"
)
"""Self-contained formats only: a playlist could read any file of this machine or URL of its network."""
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
_MIN_PACKET_RATIO = 0.98
_DEFAULT_FPS = 25  # frames per second of streams without a rate


class MediaDecodeError(InvalidInputError):
    """Raised if FFmpeg cannot decode a file."""


@contextmanager
def open_container(content: bytes, media_kind: str) -> Iterator[Any]:
    """Open a PyAV container; errors of FFmpeg in the block are raised as MediaDecodeError.

    `media_kind` names the file in messages, such as "video".
    """
    import av

    try:
        with av.open(io.BytesIO(content), options=_OPTIONS, metadata_errors="replace") as container:
            yield container
    except InvalidInputError:
        raise
    except Exception as error:  # noqa: BLE001 - FFmpeg's decoders raise many kinds for broken files
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise MediaDecodeError(f"not a readable {media_kind}, or it is truncated: {reason}") from None


class PacketTimes(NamedTuple):
    """Presentation times of a stream's packets."""

    times: list[float]
    """Seconds after the first packet, sorted."""
    offset: Fraction | None
    """Timestamp of the first packet in seconds; None if packets have no timestamps and follow at `rate`."""
    rate: float
    """Packets per second."""

    def frame_time(self, frame: Any, number: int) -> float:
        """Return the presentation time of a decoded frame in seconds; `number` counts frames from 0."""
        if self.offset is None or frame.pts is None:
            return number / self.rate
        return float(frame.pts * frame.time_base - self.offset)


def read_packet_times(stream: Any, seconds: float, media_kind: str) -> PacketTimes:
    """Read the times of the packets in the first `seconds` of a stream, without decoding them.

    Raises InvalidInputError if packets that the file's index lists are absent.
    """
    stamps: list[Fraction] = []
    rate = float(getattr(stream, "average_rate", None) or _DEFAULT_FPS)
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
        if count < _MIN_PACKET_RATIO * stream.frames:
            raise InvalidInputError(
                f"the {media_kind} is truncated: {count} of its {stream.frames} packets are present"
            )
    if len(stamps) < count:
        return PacketTimes([i / rate for i in range(count) if i / rate <= seconds], None, rate)
    offset = min(stamps, default=Fraction(0))
    times = (float(stamp - offset) for stamp in sorted(stamps))
    return PacketTimes([time for time in times if time <= seconds], offset, rate)

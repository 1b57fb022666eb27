"""Open untrusted audio and video files with FFmpeg."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.mp4_index import count_samples

MAX_FRAME_PIXELS = 36_000_000
"""Largest frame of a video: 8K."""
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,gif,apng,"
    "wav,w64,aiff,au,caf,mp3,aac,ac3,eac3,flac,amr,amrnb,amrwb,ape,wv,tta,dv,mxf,ivf,obu,rm,swf,nut"
)
"""Self-contained formats only: a playlist could read any file of this machine or URL of its network."""
_MIN_PACKET_RATIO = 0.98
_FORMAT_WITH_DURATION = "matroska"
"""The format, with WebM, that states a duration at its beginning, but no number of packets."""
_MAX_MISSING_SECONDS = 0.5
_DEFAULT_FPS = 25  # frames per second of streams without a rate
_MAX_PACKETS = 4_000_000
"""Packets of a file that are read: 2 hours of a video with 240 frames per second and its audio have 3 million."""


_TOO_MANY = f"the maximum is {_MAX_PACKETS}; cut it into parts"
_UNLIMITED_PIXELS = 2**31 - 1
"""For images, whose size was checked."""


class MediaDecodeError(InvalidInputError):
    """Raised if FFmpeg cannot decode a file."""


@contextmanager
def open_container(content: bytes, media_kind: str, formats: str = _FORMATS) -> Iterator[Any]:
    """Open a PyAV container; errors of FFmpeg in the block are raised as MediaDecodeError.

    `media_kind` names the file in messages, such as "video"; `formats` are the names of allowed formats.
    """
    import av

    if (samples := count_samples(content)) > _MAX_PACKETS:
        raise InvalidInputError(f"the index of the {media_kind} has {samples} entries; {_TOO_MANY}")
    options = {
        "format_whitelist": formats,
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_FRAME_PIXELS if formats == _FORMATS else _UNLIMITED_PIXELS),
        "threads": "1",
    }
    try:
        with av.open(io.BytesIO(content), options=options, metadata_errors="replace") as container:
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

    Raises InvalidInputError if packets that the file's index lists are absent, or if it ends before its stated duration.
    """
    stamps: list[int] = []
    base = stream.time_base
    rate = float(getattr(stream, "average_rate", None) or _DEFAULT_FPS)
    count = 0
    end = 0.0
    for number, packet in enumerate(stream.container.demux()):
        if number >= _MAX_PACKETS:
            raise InvalidInputError(f"the {media_kind} has more than {_MAX_PACKETS} packets; {_TOO_MANY}")
        if not packet.size:
            continue
        end = max(end, _end_of(packet))
        if packet.stream.index != stream.index:
            continue
        count += 1
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            base = packet.time_base
            stamps.append(stamp)
        if stamps and (stamps[-1] - stamps[0]) * base > 2 * seconds:  # packets come nearly in order
            break
    else:
        _check_duration(stream.container, end, media_kind)
        if count < _MIN_PACKET_RATIO * stream.frames:
            raise InvalidInputError(
                f"the {media_kind} is truncated: {count} of its {stream.frames} packets are present"
            )
    if len(stamps) < count:
        return PacketTimes([i / rate for i in range(count) if i / rate <= seconds], None, rate)
    first = min(stamps, default=0)
    times = (float((stamp - first) * base) for stamp in sorted(stamps))
    return PacketTimes([time for time in times if time <= seconds], first * (base or Fraction(0)), rate)


def _end_of(packet: Any) -> float:
    """Return the second at which a packet ends; 0 without a timestamp."""
    stamp = packet.dts if packet.pts is None else packet.pts
    return 0.0 if stamp is None else float((stamp + (packet.duration or 0)) * packet.time_base)


def _check_duration(container: Any, end: float, media_kind: str) -> None:
    """Raise InvalidInputError if the last packet of all streams is well before the end that the container states."""
    if container.duration is None or not container.format.name.startswith(_FORMAT_WITH_DURATION):
        return
    stated = (container.duration + (container.start_time or 0)) / 1_000_000
    if end and stated - end > max(_MAX_MISSING_SECONDS, stated * (1 - _MIN_PACKET_RATIO)):
        raise InvalidInputError(f"the {media_kind} is truncated: {end:.1f} of its {stated:.1f} s are present")

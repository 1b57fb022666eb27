"""Video: frames sampled evenly by time, of anything that FFmpeg reads."""

from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

from rayfuse.errors import BadInput
from rayfuse.modalities.base import Features, Modality, pad
from rayfuse.modalities.containers import Clock, opened, packet_clock
from rayfuse.spec.inputs import VideoInput

_MOST_PIXELS = 36_000_000  # of a frame: 8K
_EARLY = 1e-4  # seconds by which clocks of packets and frames may differ


class Clip(NamedTuple):
    """Frames: uint8 (frames, size, size, 3), and when each is shown: seconds from the first one of the file."""

    frames: np.ndarray
    times: list[float]


class VideoModality(Modality):
    """Features `frames`: float32 (frames, 3, size, size) in [-1, 1]; `frame_mask`: int64 (frames,).

    `frame_times`: float32 (frames,), seconds.
    """

    media_types = ("video/", "image/gif", "application/octet-stream")

    def __init__(self, options: VideoInput) -> None:
        self.options = options

    def decode(self, value: Any) -> Clip:
        """Bytes of a video file → its frames in RGB, turned as the file says."""
        if not isinstance(value, bytes):
            raise BadInput(f"a video's bytes belong here, not {type(value).__name__}")
        if not value:
            raise BadInput("the video is empty (0 bytes)")
        with opened(value, "video") as container:
            clock = packet_clock(_stream(container), self.options.max_seconds, "video")
        if not clock.times:
            raise BadInput("the video has no frames")
        with opened(value, "video") as container:
            return self._sample(container, clock)

    def process(self, decoded: Clip) -> Features:
        pixels = decoded.frames.transpose(0, 3, 1, 2).astype(np.float32)
        return {
            "frames": pixels / np.float32(127.5) - np.float32(1),
            "frame_mask": np.ones(len(pixels), dtype=np.int64),
            "frame_times": np.array(decoded.times, dtype=np.float32),
        }

    def steps(self, decoded: Clip) -> int:
        """Frames."""
        return len(decoded.frames)

    def blank(self) -> Features:
        size = self.options.size
        return self.process(Clip(np.zeros((1, size, size, 3), dtype=np.uint8), [0.0]))

    def collate(self, rows: list[Features]) -> Features:
        """Pad at the end to the most frames of a row: (rows, frames, …)."""
        return {name: pad([row[name] for row in rows], 0) for name in rows[0]}

    def _sample(self, container: Any, clock: Clock) -> Clip:
        wanted = even_times(clock.times, self.options.frames)
        frames: list[np.ndarray] = []
        times: list[float] = []
        for number, frame in enumerate(container.decode(_stream(container))):
            time = clock.time_of(frame, number)
            if time < wanted[0] - _EARLY:
                continue
            frames.append(self._pixels(frame))
            times.append(time)
            wanted = [later for later in wanted if later > time + _EARLY]
            if not wanted:
                break
        if not frames:
            raise BadInput("no frame of the video can be decoded; is it cut off?")
        return Clip(np.stack(frames), times)

    def _pixels(self, frame: Any) -> np.ndarray:
        size = self.options.size
        pixels: np.ndarray = frame.to_ndarray(width=size, height=size, format="rgb24", interpolation="AREA")
        return np.rot90(pixels, round(frame.rotation / 90) % 4)


def even_times(times: list[float], count: int) -> list[float]:
    """Of the times at which frames are shown, the one that is seen in the middle of each of `count` equal parts.

    Fewer where there are fewer frames. The last frame is taken to be shown as long as the others on average.
    """
    duration = times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else 0)
    middles = [(part + 0.5) * duration / count for part in range(count)]
    return sorted({times[bisect_right(times, middle) - 1] for middle in middles})


def _stream(container: Any) -> Any:
    """The first stream of moving pictures: the cover of a song is none."""
    for stream in container.streams.video:
        if stream.disposition.name and "attached_pic" in stream.disposition.name:
            continue
        context = stream.codec_context
        if context.width * context.height > _MOST_PIXELS:
            raise BadInput(
                f"the video is too large: {context.width} × {context.height} pixels; "
                f"at most {_MOST_PIXELS // 1_000_000} million are read"
            )
        context.options = {"max_pixels": str(_MOST_PIXELS)}
        return stream
    raise BadInput("the file has no video stream")

"""Video in any format that FFmpeg reads, as frames sampled evenly by time."""

import io
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.base import Features, Modality, SaliencyMap, pad
from rayfuse.modalities.decode_memory import reserve
from rayfuse.modalities.media import MAX_FRAME_PIXELS, PacketTimes, open_container, read_packet_times
from rayfuse.spec.inputs import VideoInput

_MAX_SIDE = 16_384  # pixels
_FRAMES_IN_MEMORY = 20
"""Frames that decoders hold: up to 16 that others refer to, and those in work."""
_TIME_TOLERANCE = 1e-4  # seconds by which times of packets and frames may differ


class Clip(NamedTuple):
    """Sampled frames and their times."""

    frames: np.ndarray
    """uint8 (frames, size, size, 3), RGB."""
    times: list[float]
    """Presentation time of each frame, in seconds from the first frame of the file."""


class VideoModality(Modality):
    """Video clips.

    Features: `frames`, float32 (frames, 3, size, size) in [-1, 1]; `frame_mask`, int64 (frames,); `frame_times`,
    float32 (frames,), seconds.
    """

    options: VideoInput
    example_filename = "clip.mp4"
    media_types = ("video/", "image/gif", "application/octet-stream")
    is_isolated = True

    def decode(self, value: Any) -> Clip:
        """Decode the bytes of a video file to RGB frames, rotated according to the file's metadata."""
        if not isinstance(value, bytes):
            raise InvalidInputError(
                f"expected the bytes of a video file, or its path in a row, got {type(value).__name__}"
            )
        if not value:
            raise InvalidInputError("the video file is empty (0 bytes)")
        with open_container(value, "video") as container:
            clock = read_packet_times(_video_stream(container), self.options.max_seconds, "video")
        if not clock.times:
            raise InvalidInputError("the video has no frames")
        with open_container(value, "video") as container:
            return self._sample_frames(container, clock)

    def process(self, decoded: Clip) -> Features:
        pixels = decoded.frames.transpose(0, 3, 1, 2).astype(np.float32)
        return {
            "frames": pixels / np.float32(127.5) - np.float32(1),
            "frame_mask": np.ones(len(pixels), dtype=np.int64),
            "frame_times": np.array(decoded.times, dtype=np.float32),
        }

    def num_steps(self, decoded: Clip) -> int:
        """Return the number of frames."""
        return len(decoded.frames)

    def dummy_features(self) -> Features:
        size = self.options.size
        return self.process(Clip(np.zeros((1, size, size, 3), dtype=np.uint8), [0.0]))

    def longest_features(self, as_words: bool = False) -> Features:
        count, size = self.options.num_frames, self.options.size
        frames = np.zeros((count, size, size, 3), dtype=np.uint8)
        return self.process(Clip(frames, [float(number) for number in range(count)]))

    def collate(self, rows: list[Features]) -> Features:
        """Pad at the end to the row with the most frames: (rows, frames, …)."""
        return {name: pad([row[name] for row in rows], 0) for name in rows[0]}

    def example(self) -> bytes:
        return _example_mp4()

    def description(self) -> str:
        options = self.options
        return f"a video; {options.num_frames} frames of its first {options.max_seconds:g} s are read"

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        """Group attributions by frame and pixel, summed over the color channels."""
        is_video = len(shapes.get("frames", ())) == 4
        return SaliencyMap("frames", sum_axes=(-3,)) if is_video else None

    def _sample_frames(self, container: Any, clock: PacketTimes) -> Clip:
        wanted = uniform_frame_times(clock.times, self.options.num_frames)
        frames: list[np.ndarray] = []
        times: list[float] = []
        for number, frame in enumerate(container.decode(_video_stream(container))):
            time = clock.frame_time(frame, number)
            if time < wanted[0] - _TIME_TOLERANCE:
                continue
            frames.append(self._pixels(frame))
            times.append(time)
            wanted = [later for later in wanted if later > time + _TIME_TOLERANCE]
            if not wanted:
                break
        if not frames:
            raise InvalidInputError("no frame of the video can be decoded; is the file truncated?")
        return Clip(np.stack(frames), times)

    def _pixels(self, frame: Any) -> np.ndarray:
        size = self.options.size
        pixels: np.ndarray = frame.to_ndarray(width=size, height=size, format="rgb24", interpolation="AREA")
        return np.rot90(pixels, round(frame.rotation / 90) % 4)


def uniform_frame_times(times: list[float], count: int) -> list[float]:
    """Select the times of the frames that are shown in the middle of `count` equal parts of a clip.

    `times`: presentation times of all frames, sorted. Returns fewer than `count` times if the clip has fewer frames.
    The last frame counts as shown for the mean duration of the others.
    """
    duration = times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else 0)
    middles = [(part + 0.5) * duration / count for part in range(count)]
    return sorted({times[bisect_right(times, middle) - 1] for middle in middles})


def _video_stream(container: Any) -> Any:
    """Return the first video stream that is not the cover image of an audio file."""
    for stream in container.streams.video:
        if stream.disposition.name and "attached_pic" in stream.disposition.name:
            continue
        context = stream.codec_context
        _check_size(context)
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        context.thread_count = 1  # each thread holds further frames
        return stream
    raise InvalidInputError("the file has no video stream")


def _check_size(context: Any) -> None:
    """Check the size of a video's frames, and the memory of those that its decoder holds."""
    width, height = context.width, context.height
    if width * height > MAX_FRAME_PIXELS or max(width, height) > _MAX_SIDE:
        raise InvalidInputError(
            f"the video is too large: {width} × {height} pixels; the maximum is {MAX_FRAME_PIXELS // 1_000_000} million "
            f"pixels per frame, and {_MAX_SIDE} for a side"
        )
    bits = context.format.padded_bits_per_pixel if context.format else 32
    reserve(
        width * height * bits // 8 * _FRAMES_IN_MEMORY,
        f"a video of {width} × {height} pixels, {bits} bits each,",
    )


@cache
def _example_mp4() -> bytes:
    """Encode a quarter of a second of gray frames with an audio track."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=8)
        video.width = video.height = 16
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for shade in (96, 160):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), shade, dtype=np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        tone = (0.2 * np.sin(np.arange(2048) * 0.2)).astype(np.float32)[None]
        samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(audio.encode(samples))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return file.getvalue()

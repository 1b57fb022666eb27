"""Tiny videos, encoded by tests: each frame a shade of gray, with a tone or without audio."""

import io
from collections.abc import Sequence

import av
import numpy as np

RATE = 8000


def make_clip(
    shades: Sequence[int] = (40, 80, 120, 160, 200),
    fps: int = 5,
    pitch: float | None = None,
    size: tuple[int, int] = (32, 32),
    kind: str = "mp4",
    top: int | None = None,
) -> bytes:
    """Return a video with a frame of each shade, a tone of `pitch`, and the shade `top` in all upper halves."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        video = container.add_stream("gif" if kind == "gif" else "mpeg4", rate=fps)
        video.width, video.height = size
        video.pix_fmt = "rgb8" if kind == "gif" else "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono") if pitch else None
        for shade in shades:
            pixels = np.full((size[1], size[0], 3), shade, dtype=np.uint8)
            if top is not None:
                pixels[: size[1] // 2] = top
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and pitch is not None:
            samples = np.sin(2 * np.pi * pitch * np.arange(len(shades) * RATE // fps) / RATE)
            frame = av.AudioFrame.from_ndarray(
                (0.5 * samples).astype(np.float32)[None], format="fltp", layout="mono"
            )
            frame.sample_rate = RATE
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return file.getvalue()


def make_track(pitch: float = 440.0, seconds: float = 1.0, kind: str = "mp4") -> bytes:
    """Return audio only, in AAC."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        samples = np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)
        both = np.stack([samples, samples]).astype(np.float32) * 0.5
        frame = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return file.getvalue()


def variable_bit_rate_mp3(samples: np.ndarray, rate: int) -> bytes:
    """Return an MP3 of variable bit rate without a Xing header, as streams and cutters write them."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0"}) as container:
        options = {"global_quality": "472", "flags": "+qscale"}
        audio = container.add_stream("libmp3lame", rate=rate, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        parts = av.AudioResampler(
            format=audio.format.name, layout="mono", rate=rate, frame_size=audio.codec_context.frame_size
        )
        for part in [*parts.resample(frame), *parts.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return file.getvalue()

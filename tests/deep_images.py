"""Encode images of 16 bits per channel."""

import io
from typing import Any

import av
import numpy as np
from PIL import Image


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def save_color(pixels: np.ndarray, kind: str, layout: str, **options: str) -> bytes:
    """Encode with FFmpeg, as Pillow writes colors with 8 bits only."""
    target = io.BytesIO()
    with av.open(target, "w", format="image2pipe") as container:
        stream: Any = container.add_stream(kind, rate=1, options=options)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = layout
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=layout)))
        container.mux(stream.encode(None))
    return target.getvalue()

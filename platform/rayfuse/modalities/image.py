"""Images in any format that Pillow reads, as RGB with the precision of their files."""

import io
import math
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np

from rayfuse.modalities.base import Features, InputFitter, Modality, SaliencyMap
from rayfuse.modalities.image_files import is_deep, open_image, read_deep_pixels
from rayfuse.modalities.image_range import LevelSummary, RangeFitter, scale_pixels
from rayfuse.modalities.pretrained import load_image_processor
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import ImageInput
from rayfuse.spec.summary import Summary

_PIXELS = "pixels"
_MAX_PROCESSOR_PIXELS = 16_000_000
"""Pixels above which an image is reduced first: many times those of any pretrained encoder."""
_STRIP_PIXELS = 1_000_000
"""Pixels that are made opaque at once."""
_NUM_QUANTIZED = 16
"""Images of 8 bits that together have 12 bits."""


class ImageModality(Modality):
    """Images.

    Features: `pixel_values`, float32 (3, height, width), in [-1, 1] unless a pretrained encoder has its own scale.
    """

    options: ImageInput
    media_types = ("image/", "application/octet-stream")
    example_filename = "image.png"
    is_isolated = True

    @classmethod
    def fitter(cls, options: ImageInput) -> InputFitter | None:
        return RangeFitter(options) if options.range == "auto" else None

    def summary(self) -> Summary:
        return LevelSummary(self.options)

    def decode(self, value: Any) -> Any:
        """Decode the bytes of an image file to a PIL image in RGB.

        An image of more than 8 bits per channel becomes float32 (height, width, 1 or 3), scaled to 0…255.
        """
        from PIL import ImageOps

        with open_image(value) as image:
            if is_deep(image):
                return scale_pixels(read_deep_pixels(image, value), self.options.range)
            ImageOps.exif_transpose(image, in_place=True)
            return self._reduce(_to_rgb(image))

    def process(self, decoded: Any) -> Features:
        is_array = isinstance(decoded, np.ndarray)
        if self._processor is not None:
            images = _quantize(decoded) if is_array else iter([decoded])
            found = [
                self._processor(images=[image], return_tensors="np")["pixel_values"][0] for image in images
            ]
            pixels = np.asarray(np.mean(found, axis=0), dtype=np.float32)
            return {"pixel_values": pixels.reshape(pixels.shape[-3:])}  # some have a dimension of tiles
        size = self.options.size
        if is_array:
            pixels = _resize_array(decoded, size)
        else:
            scaled = decoded if decoded.size == (size, size) else decoded.resize((size, size), resample=2)
            pixels = np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1)
        return {"pixel_values": pixels / np.float32(127.5) - np.float32(1)}

    def to_arrays(self, decoded: Any) -> Features:
        """Return the features, or the pixels for a processor of Hugging Face, which needs heavy libraries."""
        is_pretrained = isinstance(self.options.encoder, HuggingFaceEncoderConfig)
        return {_PIXELS: np.asarray(decoded)} if is_pretrained else self.process(decoded)

    def process_arrays(self, arrays: Features) -> Features:
        from PIL import Image

        pixels = arrays.get(_PIXELS)
        if pixels is None:
            return arrays
        return self.process(pixels if pixels.dtype.kind == "f" else Image.fromarray(pixels))

    def dummy_features(self) -> Features:
        from PIL import Image

        return self.process(Image.new("RGB", (self.options.size, self.options.size)))

    def example(self) -> bytes:
        return _example_png()

    def description(self) -> str:
        return f"an image; resized to {self.options.size} × {self.options.size} pixels"

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        """Group attributions by pixel, summed over the color channels."""
        is_image = len(shapes.get("pixel_values", ())) == 3
        return SaliencyMap("pixel_values", sum_axes=(-3,)) if is_image else None

    def _reduce(self, image: Any) -> Any:
        """Reduce a large image for a processor of Hugging Face, which copies it several times, by a whole factor."""
        if not isinstance(self.options.encoder, HuggingFaceEncoderConfig):
            return image
        factor = math.ceil(math.sqrt(image.width * image.height / _MAX_PROCESSOR_PIXELS))
        return image if factor <= 1 else image.reduce(factor)

    @cached_property
    def _processor(self) -> Any:
        encoder = self.options.encoder
        return load_image_processor(encoder.model) if isinstance(encoder, HuggingFaceEncoderConfig) else None


def _to_rgb(image: Any) -> Any:
    """Convert to RGB on white, as the color of transparent pixels is arbitrary; an image in RGB is returned itself."""
    from PIL import Image

    image.load()
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    opaque = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        visible = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", visible.size, "white")
        opaque.paste(Image.alpha_composite(white, visible).convert("RGB"), (0, top))
    return opaque


def _resize_array(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (height, width, 1 or 3) to (3, size, size) as Pillow resizes images of 8 bits, without rounding."""
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), resample=2))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(planes * (3 // len(planes)))


def _quantize(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield images of 8 bits, (height, width, 3), whose mean is the image: processors of Hugging Face read no others.

    A processor resizes, crops and normalizes, so that the mean of its results is the result of the mean.
    """
    steps = (np.arange(_NUM_QUANTIZED, dtype=np.float32) + np.float32(0.5)) / _NUM_QUANTIZED
    shape = (*pixels.shape[:2], 3)
    return (np.broadcast_to((pixels + step).astype(np.uint8), shape) for step in steps)


@cache
def _example_png() -> bytes:
    """Encode a gray gradient of 16 × 16 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "PNG")
    return file.getvalue()

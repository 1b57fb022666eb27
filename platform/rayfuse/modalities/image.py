"""Images in any format that Pillow reads, as RGB."""

import io
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.base import Features, Modality, SaliencyMap
from rayfuse.modalities.pretrained import load_image_processor
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import ImageInput

_MAX_PIXELS = 90_000_000


class ImageModality(Modality):
    """Images.

    Features: `pixel_values`, float32 (3, height, width), in [-1, 1] unless a pretrained encoder has its own scale.
    """

    options: ImageInput
    media_types = ("image/", "application/octet-stream")
    example_filename = "image.png"

    def decode(self, value: Any) -> Any:
        """Decode the bytes of an image file to a PIL image in RGB."""
        from PIL import Image, ImageOps

        if not isinstance(value, bytes):
            raise InvalidInputError(
                f"expected the bytes of an image file, or its path in a row, got {type(value).__name__}"
            )
        if not value:
            raise InvalidInputError("the image file is empty (0 bytes)")
        try:
            with Image.open(io.BytesIO(value)) as image:
                _check_size(image)
                return _to_rgb(ImageOps.exif_transpose(image))
        except InvalidInputError:
            raise
        except Image.UnidentifiedImageError:
            raise InvalidInputError("not a readable image: unknown format; use PNG, JPEG or WebP") from None
        except Image.DecompressionBombError as error:
            raise InvalidInputError(f"the image is too large: {error}") from None
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds for broken files
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InvalidInputError(f"not a readable image: {reason}") from None

    def process(self, decoded: Any) -> Features:
        if self._processor is not None:
            pixels = self._processor(images=decoded, return_tensors="np")["pixel_values"][0]
            return {"pixel_values": np.asarray(pixels, dtype=np.float32)}
        size = self.options.size
        scaled = decoded if decoded.size == (size, size) else decoded.resize((size, size), resample=2)
        pixels = np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1)
        return {"pixel_values": pixels / np.float32(127.5) - np.float32(1)}

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

    @cached_property
    def _processor(self) -> Any:
        encoder = self.options.encoder
        return load_image_processor(encoder.model) if isinstance(encoder, HuggingFaceEncoderConfig) else None


def _check_size(image: Any) -> None:
    """Reject decompression bombs: a few kilobytes can hold an image that takes gigabytes to decode."""
    if image.width * image.height > _MAX_PIXELS:
        raise InvalidInputError(
            f"the image is too large: {image.width} × {image.height} pixels; "
            f"the maximum is {_MAX_PIXELS // 1_000_000} million pixels"
        )


def _to_rgb(image: Any) -> Any:
    """Convert to RGB on white, as the color of transparent pixels is arbitrary, with 16 bits scaled to 8."""
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    visible = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise InvalidInputError(
            "the pixels are neither 8-bit nor 16-bit integers; save the image with 8 bits per channel"
        )
    return (pixels.astype(np.uint32) // 257).astype(np.uint8)


@cache
def _example_png() -> bytes:
    """Encode a gray gradient of 16 × 16 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "PNG")
    return file.getvalue()

"""Pictures: anything that Pillow reads, as RGB."""

import io
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.pretrained import image_processor
from rayfuse.spec.encoders import HuggingFaceEncoder
from rayfuse.spec.inputs import ImageInput

_MOST_PIXELS = 90_000_000


class ImageModality(Modality):
    """Features `pixel_values`: float32 (3, height, width), in [-1, 1] for a conv encoder."""

    media_types = ("image/", "application/octet-stream")

    def __init__(self, options: ImageInput) -> None:
        self.options = options

    def decode(self, value: Any) -> Any:
        """Bytes of a picture file → a PIL image in RGB."""
        from PIL import Image, ImageOps

        if not isinstance(value, bytes):
            raise BadInput(f"a picture's bytes belong here, not {type(value).__name__}")
        if not value:
            raise BadInput("the picture is empty (0 bytes)")
        try:
            with Image.open(io.BytesIO(value)) as image:
                _check_size(image)
                return _to_rgb(ImageOps.exif_transpose(image))
        except BadInput:
            raise
        except Image.UnidentifiedImageError:
            raise BadInput("not a readable picture: its format is unknown; use PNG, JPEG or WebP") from None
        except Image.DecompressionBombError as error:
            raise BadInput(f"the picture is too large: {error}") from None
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds for broken files
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise BadInput(f"not a readable picture: {reason}") from None

    def process(self, decoded: Any) -> Features:
        if self._processor is not None:
            pixels = self._processor(images=decoded, return_tensors="np")["pixel_values"][0]
            return {"pixel_values": np.asarray(pixels, dtype=np.float32)}
        size = self.options.size
        scaled = decoded if decoded.size == (size, size) else decoded.resize((size, size), resample=2)
        pixels = np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1)
        return {"pixel_values": pixels / np.float32(127.5) - np.float32(1)}

    def blank(self) -> Features:
        from PIL import Image

        return self.process(Image.new("RGB", (self.options.size, self.options.size)))

    @cached_property
    def _processor(self) -> Any:
        encoder = self.options.encoder
        return image_processor(encoder.model) if isinstance(encoder, HuggingFaceEncoder) else None


def _check_size(image: Any) -> None:
    """A few kilobytes can hold a picture that takes gigabytes to open."""
    if image.width * image.height > _MOST_PIXELS:
        raise BadInput(
            f"the picture is too large: {image.width} × {image.height} pixels; "
            f"at most {_MOST_PIXELS // 1_000_000} million are read"
        )


def _to_rgb(image: Any) -> Any:
    """Transparent pixels become white: what they hide is arbitrary. 16 bits are scaled to 8, which Pillow cuts off."""
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    visible = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise BadInput("the picture's pixels are not numbers of 8 or 16 bits; save it as an 8-bit picture")
    return (pixels.astype(np.uint32) // 257).astype(np.uint8)

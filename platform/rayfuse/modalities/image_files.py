"""Image files: opening, and the pixels of those with more than 8 bits per channel, with their full precision."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.decode_memory import reserve
from rayfuse.modalities.media import open_container

_MAX_PIXELS = 90_000_000
_MAX_SIDE = 65_535
"""Longest side in pixels, that of JPEG: resizing needs memory for each pixel of a side."""
_MAX_DIRECTORIES = 100
"""Directories of a TIFF that are read: a page, its smaller copies and masks."""
_EXCLUDED_FORMATS = frozenset(
    {"BUFR", "EPS", "FITS", "FPX", "GRIB", "HDF5", "ICNS", "MIC", "MPEG", "PCD", "WMF"}
)
"""Formats that run another program, hold images whose size is not that of the file's header, or have no decoder."""
_CODEC_BYTES = {"AVIF": 9, "JPEG": 7, "JPEG2000": 18, "MPO": 7, "TIFF": 4}
"""Bytes per pixel that decoders take in addition to the image, measured and rounded up."""
_WEBP_BYTES = 20
_MODE_BYTES = {"RGB": 5, "1": 6, "L": 6, "P": 6}
"""Bytes per pixel of Pillow's images and their conversion to RGB, by mode."""
_OTHER_BYTES = 10
_DEEP_BYTES, _GRAY_16_BYTES = 26, 10
"""Bytes per pixel of images with more than 8 bits per channel while they are scaled."""
_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 0b101
"""Bits of a TIFF page's type: a smaller copy of another page, a transparency mask."""
_SPLIT_PAGES = "save each page as a file, with a row for each, or with `max_items` as a list in one row"
_ICON = b"\0\0\1\0"
_PNG_HEADER = b"\x89PNG\r\n\x1a\n"
_FFMPEG_FORMATS = {"PNG": "png_pipe", "TIFF": "tiff_pipe"}
_SIXTEEN_BITS = ";16"
"""Part of the names that Pillow gives to layouts of 16 bits per channel, most of which it converts to 8 bits."""


@contextmanager
def open_image(value: Any) -> Iterator[Any]:
    """Open the bytes of an image file with Pillow, which decodes it at first use.

    Errors of decoders in the block are raised as InvalidInputError.
    """
    from PIL import Image

    if not isinstance(value, bytes):
        raise InvalidInputError(
            f"expected the bytes of an image file, or its path in a row, got {type(value).__name__}"
        )
    if not value:
        raise InvalidInputError("the image file is empty (0 bytes)")
    try:
        _check_webp(value)
        _check_icon(value)
        with Image.open(io.BytesIO(value), formats=_formats()) as image:
            _check_size(image)
            _check_pages(image)
            yield image
    except InvalidInputError:
        raise
    except Image.UnidentifiedImageError:
        raise InvalidInputError(_explain_unknown_format(value)) from None
    except Image.DecompressionBombError as error:
        raise InvalidInputError(f"the image is too large: {error}") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds for broken files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InvalidInputError(f"not a readable image: {reason}") from None


def is_deep(image: Any) -> bool:
    """Return whether an image, opened but not decoded, has more than 8 bits per channel that can be read."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or _needs_ffmpeg(image)


def read_deep_pixels(image: Any, content: bytes) -> np.ndarray:
    """Decode a deep image to the numbers of its file: (height, width, 1 or 3), rotated as its metadata states.

    Transparent pixels are white. Raises InvalidInputError for NaN and infinite numbers.
    """
    from PIL import ImageOps

    if _needs_ffmpeg(image):
        image.load()  # FFmpeg accepts truncated files
        return _on_white(_rotate(_decode_with_ffmpeg(content, image.format), image))
    ImageOps.exif_transpose(image, in_place=True)
    pixels = np.asarray(image)[..., np.newaxis]
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InvalidInputError("pixels are NaN or infinite; replace them in the file")
    return pixels


def _needs_ffmpeg(image: Any) -> bool:
    """Return whether Pillow would convert an image, which is not decoded yet, from 16 to 8 bits per channel."""
    if image.format not in _FFMPEG_FORMATS or image.mode not in ("RGB", "RGBA", "LA"):
        return False
    return any(_SIXTEEN_BITS in str(tile.args) for tile in image.tile)


def _decode_with_ffmpeg(content: bytes, image_format: str) -> np.ndarray:
    """Return the channels of a 16-bit image, uint16 (height, width, 2 to 4), with alpha as an even one."""
    with open_container(content, "image", _FFMPEG_FORMATS[image_format]) as container:
        for frame in container.decode(video=0):
            if not frame.format.name.startswith("ya16"):
                pixels: np.ndarray = frame.to_ndarray()
                return pixels
            plane = frame.planes[0]
            order = frame.format.name.removeprefix("ya16")
            rows = np.frombuffer(plane, ">u2" if order == "be" else "<u2").reshape(frame.height, -1)
            return rows[:, : 2 * frame.width].reshape(frame.height, frame.width, 2).astype(np.uint16)
    raise InvalidInputError(
        "not a readable image: no image found; save it as PNG, or as a TIFF without tiles"
    )


def _rotate(pixels: np.ndarray, image: Any) -> np.ndarray:
    """Rotate and mirror as Pillow does according to the orientation in the metadata of `image`."""
    from PIL import Image, ImageOps

    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return pixels
    planes = []
    for channel in np.moveaxis(pixels, -1, 0):
        plane = Image.fromarray(np.ascontiguousarray(channel))
        plane.getexif()[_ORIENTATION] = orientation
        planes.append(np.asarray(ImageOps.exif_transpose(plane)))
    return np.stack(planes, axis=-1)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[-1] == 3:
        return pixels
    white = np.float32(np.iinfo(pixels.dtype).max)
    shown = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), dtype=pixels.dtype)
    for line, target in zip(pixels, shown, strict=True):
        alpha = line[:, -1:].astype(np.float32) / white
        target[:] = (line[:, :-1] * alpha + white * (1 - alpha)).round()
    return shown


@cache
def _formats() -> list[str]:
    """Return the formats that are read, the common ones first."""
    from PIL import Image

    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name not in _EXCLUDED_FORMATS]


def _check_size(image: Any) -> None:
    """Reject decompression bombs: a few kilobytes can hold an image that takes gigabytes to decode."""
    _check_sides(image.width, image.height)
    if is_deep(image):
        per_pixel = _GRAY_16_BYTES if image.mode.startswith("I;16") else _DEEP_BYTES
    else:
        per_pixel = _MODE_BYTES.get(image.mode, _OTHER_BYTES)
        if image.format != "JPEG" or "progressive" in image.info:
            per_pixel += _CODEC_BYTES.get(image.format, 0)
    reserve(
        image.width * image.height * per_pixel,
        f"an image of {image.width} × {image.height} pixels ({image.format})",
    )


def _check_sides(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise InvalidInputError(
            f"the image is too large: {width} × {height} pixels; the maximum is {_MAX_PIXELS // 1_000_000} million pixels"
        )
    if max(width, height) > _MAX_SIDE:
        raise InvalidInputError(
            f"the image is too large: {width} × {height} pixels; the maximum of a side is {_MAX_SIDE} pixels"
        )


def _check_webp(content: bytes) -> None:
    """Check the size in the header of a WebP file (RFC 9649), as opening it allocates its canvas."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(content[place : place + 3], "little") for place in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    _check_sides(width, height)
    reserve(width * height * _WEBP_BYTES, f"an image of {width} × {height} pixels (WEBP)")


def _check_pages(image: Any) -> None:
    if image.format != "TIFF":
        return
    pages = 0
    for number in range(_MAX_DIRECTORIES):
        try:
            image.seek(number)
        except EOFError:
            break
        pages += not image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK
    else:
        raise InvalidInputError(
            f"the TIFF has {_MAX_DIRECTORIES} directories or more, and an image has one; {_SPLIT_PAGES}"
        )
    image.seek(0)
    if pages > 1:
        raise InvalidInputError(f"the TIFF has {pages} pages, and an image has one; {_SPLIT_PAGES}")


def _check_icon(content: bytes) -> None:
    """Check the images of an icon, whose sizes may differ from those that it states."""
    place = content.find(_PNG_HEADER) if content.startswith(_ICON) else -1
    while 0 <= place <= len(content) - 24:
        width, height = struct.unpack_from(">II", content, place + 16)
        _check_sides(width, height)
        reserve(3 * 4 * width * height, f"an icon of {width} × {height} pixels")
        place = content.find(_PNG_HEADER, place + 1)


def _explain_unknown_format(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return (
            "not a readable image: a DICOM file; save its pixels as 16-bit PNG or TIFF, such as with "
            "`Image.fromarray(pydicom.dcmread(file).pixel_array).save(...)`"
        )
    return "not a readable image: unknown format; use PNG, JPEG or WebP"

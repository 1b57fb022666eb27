"""Images of more than 8 bits per channel are decoded to the numbers of their files."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from deep_images import save, save_color
from PIL import Image

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.image_files import is_deep, open_image, read_deep_pixels

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 65536, (12, 16), dtype=np.uint16)
COLOR = RNG.integers(0, 65536, (12, 16, 3), dtype=np.uint16)
ALPHA = RNG.integers(0, 65536, (12, 16, 4), dtype=np.uint16)


def gray_with_alpha(pixels: np.ndarray, extra: bytes = b"") -> bytes:
    """Encode uint16 (height, width, 2) as PNG."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def read(content: bytes) -> np.ndarray:
    with open_image(content) as image:
        assert is_deep(image)
        return read_deep_pixels(image, content)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_gray(kind: str, options: dict[str, Any]) -> None:
    found = read(save(Image.fromarray(GRAY), kind, **options))
    np.testing.assert_array_equal(found[..., 0], GRAY)
    assert found.shape == (12, 16, 1)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_numbers(dtype: Any) -> None:
    pixels = (GRAY.astype(dtype) - 1000).astype(dtype)
    np.testing.assert_array_equal(read(save(Image.fromarray(pixels), "TIFF"))[..., 0], pixels)


@pytest.mark.parametrize(
    ("kind", "layout", "options"),
    [
        ("png", "rgb48be", {}),
        ("tiff", "rgb48le", {"compression_algo": "raw"}),
        ("tiff", "rgb48le", {"compression_algo": "lzw"}),
        ("tiff", "rgb48le", {"compression_algo": "deflate"}),
    ],
)
def test_color(kind: str, layout: str, options: dict[str, str]) -> None:
    np.testing.assert_array_equal(read(save_color(COLOR, kind, layout, **options)), COLOR)


def test_transparent_pixels_are_white() -> None:
    for pixels, content in (
        (ALPHA, save_color(ALPHA, "png", "rgba64be")),
        (ALPHA[..., :2], gray_with_alpha(ALPHA[..., :2])),
    ):
        alpha = pixels[..., -1:] / 65535
        wanted = pixels[..., :-1] * alpha + 65535 * (1 - alpha)
        np.testing.assert_allclose(read(content), wanted, atol=1)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(GRAY, -1)
    np.testing.assert_array_equal(read(save(Image.fromarray(GRAY), "PNG", exif=exif))[..., 0], turned)
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    extra = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    opaque = np.stack([GRAY, np.full_like(GRAY, 65535)], axis=-1)
    np.testing.assert_array_equal(read(gray_with_alpha(opaque, extra))[..., 0], turned)


def test_truncated_files_are_rejected() -> None:
    for content in (save(Image.fromarray(GRAY), "PNG"), save_color(COLOR, "png", "rgb48be")):
        with pytest.raises(InvalidInputError, match="not a readable image"):
            read(content[: len(content) // 2])


def test_numbers_that_are_not_finite_are_rejected() -> None:
    pixels = np.array([[0.5, np.nan]], dtype=np.float32)
    with pytest.raises(InvalidInputError, match="pixels are NaN or infinite; replace them in the file"):
        read(save(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_images_of_8_bits_are_not_deep(mode: str) -> None:
    with open_image(save(Image.new(mode, (4, 4)), "TIFF" if mode == "CMYK" else "PNG")) as image:
        assert not is_deep(image)


def test_pages_of_a_tiff_are_rejected_but_not_smaller_copies() -> None:
    page = Image.new("L", (4, 4))
    stack = save(page, "TIFF", save_all=True, append_images=[page, page])
    with (
        pytest.raises(
            InvalidInputError, match="has 3 pages, .* save each page as a file, with a row for each"
        ),
        open_image(stack),
    ):
        pass
    copy = Image.new("L", (2, 2))
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    with open_image(save(page, "TIFF", save_all=True, append_images=[copy])) as image:
        assert image.size == (4, 4)

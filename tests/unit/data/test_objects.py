"""Images of Pillow, arrays and clips become files without loss."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from rayfuse.data.objects import to_raw_value
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.image_files import open_image, read_deep_pixels

GRAY = np.random.default_rng(0).integers(0, 65536, (12, 16), dtype=np.uint16)
COLOR = np.random.default_rng(0).integers(0, 65536, (12, 16, 3), dtype=np.uint16)


def read(value: Any) -> np.ndarray:
    content = to_raw_value(value, is_media=True)
    with open_image(content) as image:
        return read_deep_pixels(image, content)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_images_of_pillow(mode: str) -> None:
    image = Image.fromarray(GRAY if mode.startswith("I;16") else GRAY.astype("f4" if mode == "F" else "i4"))
    image = image if image.mode == mode else Image.frombytes(mode, (16, 12), GRAY.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(image)[..., 0], GRAY)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_gray_arrays(dtype: Any) -> None:
    pixels = GRAY.astype(dtype)
    np.testing.assert_array_equal(read(pixels)[..., 0], pixels)
    np.testing.assert_array_equal(read(pixels[..., np.newaxis])[..., 0], pixels)


def test_color_arrays() -> None:
    np.testing.assert_array_equal(read(COLOR), COLOR)
    opaque = np.concatenate([COLOR, np.full((12, 16, 1), 65535, dtype=np.uint16)], axis=2)
    np.testing.assert_array_equal(read(opaque), COLOR)


@pytest.mark.parametrize("mode", ["PA", "RGBa", "LA", "RGBA"])
def test_transparency_is_kept(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    with open_image(to_raw_value(image, is_media=True)) as found:
        assert np.asarray(found.convert("RGBA"))[..., 3].tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("dtype", "zero", "full"),
    [
        ("uint8", 128, 128),
        ("int16", 0, 2**15),
        ("int32", 0, 2**31),
        ("float16", 0, 1),
        ("float32", 0, 1),
        ("float64", 0, 1),
    ],
)
@pytest.mark.parametrize("shape", [(400,), (400, 2), (2, 400), (1, 400)])
def test_clips(dtype: str, zero: int, full: int, shape: tuple[int, ...]) -> None:
    """Samples have the range of files, and the longer axis is time."""
    tone = 0.5 * np.sin(np.arange(400) / 5)
    array = (zero + full * np.broadcast_to(tone if shape[-1] == 400 else tone[:, None], shape)).astype(dtype)
    for value in ({"array": array, "sampling_rate": 8000}, (array, 8000)):
        samples, rate = soundfile.read(io.BytesIO(to_raw_value(value, is_media=True)), always_2d=True)
        assert (len(samples), rate) == (400, 8000)
        np.testing.assert_allclose(samples, np.broadcast_to(tone[:, None], samples.shape), atol=0.01)


@pytest.mark.parametrize("array", [np.zeros(4, complex), np.zeros((2, 3, 4)), np.zeros(4, bool)])
def test_arrays_that_are_no_clips_are_rejected(array: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="is not a clip; give samples"):
        to_raw_value((array, 8000), is_media=True)


def test_other_arrays_are_unchanged() -> None:
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.int32)):
        assert to_raw_value(array, is_media=True) is array

"""The range of images with more than 8 bits is fitted on training rows; low contrast is reported."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from deep_images import save, save_color
from PIL import Image

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.image import ImageModality
from rayfuse.modalities.image_range import RowSample
from rayfuse.spec.inputs import ImageInput


def options(**changes: Any) -> ImageInput:
    return ImageInput.model_validate({"type": "image", "column": "scan", "size": 16, **changes})


def encode(pixels: np.ndarray) -> bytes:
    return save(Image.fromarray(pixels), "TIFF")


def scan(low: int, high: int, seed: int = 0, dtype: Any = np.uint16) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(low, high, (32, 32), endpoint=True).astype(dtype)
    pixels[0, :2] = low, high
    return encode(pixels)


def fit(*values: bytes) -> ImageInput:
    fitted: ImageInput = ImageModality.fit(options(), values)
    return fitted


def decode(limits: Any, value: bytes) -> np.ndarray:
    return np.asarray(ImageModality(options(range=limits)).decode(value))


def warnings(source: ImageInput, values: list[bytes]) -> list[str]:
    summary = ImageModality(source).summary()
    for value in values:
        if summary.takes_next_row():
            summary.update(value)
    return list(summary.lines())


def test_range_of_training_rows() -> None:
    fitted = fit(*(scan(400, 900, seed) for seed in range(4)))
    assert fitted.range == (400, 900)
    assert ImageModality.fitter(fitted) is None
    assert ImageInput.model_validate(fitted.model_dump(mode="json")) == fitted
    assert fit(scan(-1000, 3000, dtype=np.int32)).range == (-1000, 3000)
    color = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    assert fit(save_color(color, "png", "rgb48be")).range == (color.min(), color.max())


def test_far_outliers_are_clipped() -> None:
    pixels = np.random.default_rng(0).integers(400, 900, (100, 100), endpoint=True).astype(np.uint16)
    pixels[0, 0] = 65535
    low, high = fit(encode(pixels)).range
    assert low == 400
    assert 1350 <= high <= 1450
    assert decode((low, high), encode(pixels))[0, 0] == 255


def test_few_bright_pixels_on_a_uniform_background_are_in_the_range() -> None:
    pixels = np.full((200, 200), 100, dtype=np.uint16)
    pixels[0, :3] = 5000
    assert fit(encode(pixels)).range == (100, 5000)
    assert fit(encode(np.full((4, 4), 100, dtype=np.uint16))).range == (100, 101)


def test_8_bits_have_no_range() -> None:
    photo = encode(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    assert fit(photo, b"no image").range == "dtype"
    for limits in ("auto", "dtype", (400, 900)):
        np.testing.assert_array_equal(decode(limits, photo), decode("auto", photo))


def test_scaling() -> None:
    value = encode(np.array([[0, 400, 650, 900, 65535]], dtype=np.uint16))
    np.testing.assert_allclose(decode((400, 900), value)[0, :, 0], [0, 0, 127.5, 255, 255])
    np.testing.assert_allclose(decode("dtype", value)[0, :, 0] * 257, [0, 400, 650, 900, 65535], atol=0.01)
    fractions = encode(np.array([[0, 0.5, 1]], dtype=np.float32))
    np.testing.assert_allclose(decode("dtype", fractions)[0, :, 0], [0, 127.5, 255])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_natural_range_are_rejected(dtype: Any) -> None:
    with pytest.raises(
        InvalidInputError, match=r"pixels from -1000 to .* are outside 0 to .*; set the `range`"
    ):
        decode("dtype", encode(np.array([[-1000, 1000]], dtype=dtype)))


def test_levels_of_12_bits_remain() -> None:
    values = [scan(400, 560, seed) for seed in range(4)]
    source = fit(*values)
    modality = ImageModality(source)
    for limits in (source.range, "dtype"):
        assert len(np.unique(decode(limits, values[0]))) > 150
    spread = np.ptp(modality.process(modality.decode(values[0]))["pixel_values"])
    assert spread > 0.5
    assert not warnings(source, values)
    [warning] = warnings(options(range="dtype"), [*values, encode(np.zeros((4, 4), dtype=np.uint8))])
    assert warning == (
        "WARNING 4 of 5 sampled images have at most 8 of 256 levels in `range: dtype`; "
        "`range: auto` fits it to the training rows"
    )


def test_images_that_were_squeezed_into_8_bits_are_reported() -> None:
    squeezed = [
        encode(np.random.default_rng(seed).integers(2, 5, (8, 8), dtype=np.uint8)) for seed in range(3)
    ]
    [warning] = warnings(options(), squeezed)
    assert "3 of 3 sampled images have at most 8 of 256 levels; if they were converted" in warning
    drawing = encode(np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8) * 255)
    photo = encode(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    assert not warnings(options(), [drawing, photo, b"no image"])


def test_an_empty_range_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"\[900.0, 400.0\] is empty; write \[low, high\]"):
        options(range=[900, 400])


def test_a_sample_of_many_rows_is_read() -> None:
    sample = RowSample()
    taken = [row for row in range(100_000) if sample.take()]
    assert taken[:128] == list(range(128))
    assert 400 < len(taken) < 700
    assert max(after / before for before, after in pairwise(taken[100:])) < 1.2

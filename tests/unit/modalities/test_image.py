"""Images of every format become RGB of one size; values that are not images are rejected with a reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
from PIL import Image, ImageOps

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.image import ImageModality
from rayfuse.spec.encoders import ConvEncoderConfig, HuggingFaceEncoderConfig
from rayfuse.spec.inputs import ImageInput

CONV = ConvEncoderConfig(type="conv")


def modality(size: int = 8) -> ImageModality:
    return ImageModality(ImageInput(type="image", column="image", size=size, encoder=CONV))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """Dark on the left, bright on the right, a red corner at the top left."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (8, 1))).convert("RGB")
    image.paste((255, 0, 0), (0, 0, 2, 2))
    return image.convert(mode)


def pixels(value: bytes) -> np.ndarray:
    return np.asarray(modality().decode(value))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_formats(kind: str) -> None:
    options = (
        {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    )
    found = pixels(encode(gradient(), kind, **options))
    assert found.shape == (8, 16, 3)
    np.testing.assert_allclose(found.astype(int), np.asarray(gradient()), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA"])
def test_modes(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    found = pixels(encode(gradient(mode), kind)).astype(int)
    wanted = np.asarray(gradient(mode).convert("RGB")).astype(int)
    np.testing.assert_allclose(found, wanted, atol=2)


def test_transparent_pixels_are_white() -> None:
    hidden = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    hidden.paste((0, 0, 255, 255), (0, 0, 2, 4))
    found = pixels(encode(hidden))
    assert found[0, 0].tolist() == [0, 0, 255]
    assert found[0, 3].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert pixels(encode(palette, transparency=b"\xff\x00"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = gradient()
    value = encode(turned, "PNG", exif=exif)
    with Image.open(io.BytesIO(value)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(pixels(value), wanted)
    assert (orientation >= 5) == (pixels(value).shape[:2] == (16, 8))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", r"the image file is empty \(0 bytes\)"),
        (b"This is a text.", "not a readable image: unknown format; use PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown format"),
        (bytes(128) + b"DICM" + bytes(64), "a DICOM file; save its pixels as 16-bit PNG or TIFF"),
        (encode(noise())[:3000], "not a readable image: .*truncated"),
        (encode(noise(), "JPEG")[:1500], "not a readable image: .*truncated"),
        (encode(noise())[:20], "not a readable image: "),
        (encode(noise()).replace(b"IDAT", b"IDAX"), "not a readable image: "),
        (3, "expected the bytes of an image file, or its path in a row, got int"),
        ("a.png", "expected the bytes of an image file, or its path in a row, got str"),
    ],
)
def test_invalid_files_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem) as caught:
        modality().decode(value)
    assert "0x" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 13_500])
def test_decompression_bombs_are_rejected(side: int) -> None:
    bomb = encode(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(InvalidInputError, match="the image is too large: "):
        modality().decode(bomb)


def test_processing() -> None:
    features = modality().process(modality().decode(encode(gradient())))
    assert features.keys() == {"pixel_values"}
    assert features["pixel_values"].shape == (3, 8, 8)
    assert features["pixel_values"].dtype == np.float32
    assert features["pixel_values"].min() >= -1
    assert features["pixel_values"].max() <= 1
    white = modality().process(Image.new("RGB", (1, 1), "white"))["pixel_values"]
    np.testing.assert_array_equal(white, np.ones((3, 8, 8), dtype=np.float32))
    np.testing.assert_array_equal(
        modality().dummy_features()["pixel_values"], -np.ones((3, 8, 8), dtype=np.float32)
    )


def test_features_are_those_of_the_pretrained_processor(tmp_path: Path) -> None:
    folder = str(tiny_encoders.vit(tmp_path))
    options = ImageInput(
        type="image",
        column="image",
        size=8,
        encoder=HuggingFaceEncoderConfig(type="huggingface", model=folder),
    )
    pretrained = ImageModality(options)
    features = pretrained.process(pretrained.decode(encode(gradient())))
    assert features["pixel_values"].shape == pretrained.dummy_features()["pixel_values"].shape == (3, 16, 16)
    assert features["pixel_values"].dtype == np.float32
    stacked = pretrained.collate([features, pretrained.dummy_features()])
    assert stacked["pixel_values"].shape == (2, 3, 16, 16)


def deep_and_shallow() -> tuple[bytes, bytes]:
    """Return the same image with 16 bits and with 8 bits per channel."""
    shallow = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    return encode(Image.fromarray(shallow.astype(np.uint16) * 257)), encode(Image.fromarray(shallow))


def test_16_bits_have_the_features_of_8_bits_where_8_bits_suffice() -> None:
    deep, shallow = (modality().process(modality().decode(value)) for value in deep_and_shallow())
    level = 1 / 127.5  # 8 bits are rounded when they are resized
    np.testing.assert_allclose(deep["pixel_values"], shallow["pixel_values"], atol=level)
    assert np.unique(deep["pixel_values"]).size > np.unique(shallow["pixel_values"]).size


@pytest.mark.parametrize("write", [tiny_encoders.vit, tiny_encoders.clip])
def test_pretrained_processors_get_more_than_8_bits(write: Any, tmp_path: Path) -> None:
    encoder = HuggingFaceEncoderConfig(type="huggingface", model=str(write(tmp_path)))
    pretrained = ImageModality(ImageInput(type="image", column="image", encoder=encoder))
    deep, shallow = (pretrained.process(pretrained.decode(value)) for value in deep_and_shallow())
    level = 1 / 255 / 0.26  # of 8 bits, after the division by the smallest standard deviation
    np.testing.assert_allclose(deep["pixel_values"], shallow["pixel_values"], atol=level)
    faint = np.tile(np.arange(20_000, 20_512, 32, dtype=np.uint16), (16, 1))  # two levels of 8 bits
    found = pretrained.process(pretrained.decode(encode(Image.fromarray(faint))))["pixel_values"]
    assert found.shape == (3, 16, 16)
    assert (np.diff(found[0, 0]) > 0).all()

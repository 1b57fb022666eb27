"""Random changes of pictures, on `pixel_values`: float32 (3, height, width) of any scale."""

import math
from typing import Any

import numpy as np

from rayfuse.modalities.augment.base import with_noise
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import (
    AffineImage,
    ColorImage,
    CropImage,
    ElasticImage,
    EraseImage,
    FlipImage,
    Noise,
)

_ASPECTS = (3 / 4, 4 / 3)
"""Width by height of cut out and erased parts, relative to the picture's."""


def affine(options: AffineImage, features: Features, chance: np.random.Generator) -> Features:
    """About the middle of the picture, with bilinear interpolation."""
    angle, shear = (math.radians(chance.uniform(-most, most)) for most in (options.rotate, options.shear))
    size = _factor(options.scale, chance)
    _, height, width = features["pixel_values"].shape
    move = chance.uniform(-options.shift, options.shift, 2) * (width, height)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ np.array([[1, math.tan(shear)], [0, 1]]) * size)
    middle = np.array([width, height]) / 2
    start = middle - back @ (middle + move)
    return _change(features, lambda pixels: _transformed(pixels, back, start))


def elastic(options: ElasticImage, features: Features, chance: np.random.Generator) -> Features:
    """Bilinear between the points of the grid, and between the pixels."""
    _, height, width = features["pixel_values"].shape
    points = np.stack(
        np.meshgrid(*(np.linspace(0, side, options.knots).round() for side in (width, height))), axis=2
    )
    moves = chance.uniform(-options.strength, options.strength, points.shape) * (width, height)
    return _change(features, lambda pixels: _bent(pixels, points, points + moves))


def crop(options: CropImage, features: Features, chance: np.random.Generator) -> Features:
    """A part of a shape between 3:4 and 4:3, brought to the size of the whole."""
    _, height, width = features["pixel_values"].shape
    high, wide = _sides(options.area, chance)
    back = np.diag([wide, high])
    start = chance.uniform(0, 1, 2) * (1 - wide, 1 - high) * (width, height)
    return _change(features, lambda pixels: _transformed(pixels, back, start))


def flip(options: FlipImage, features: Features, chance: np.random.Generator) -> Features:
    return _change(features, lambda pixels: np.ascontiguousarray(pixels[:, :, ::-1]))


def erase(options: EraseImage, features: Features, chance: np.random.Generator) -> Features:
    """A rectangle gets the picture's mean colour."""
    pixels = features["pixel_values"].copy()
    _, height, width = pixels.shape
    share_high, share_wide = _sides(options.area, chance)
    high, wide = round(share_high * height), round(share_wide * width)
    top, left = chance.integers(0, height - high + 1), chance.integers(0, width - wide + 1)
    pixels[:, top : top + high, left : left + wide] = pixels.mean(axis=(1, 2), keepdims=True)
    return {**features, "pixel_values": pixels}


def color(options: ColorImage, features: Features, chance: np.random.Generator) -> Features:
    def changed(pixels: np.ndarray) -> np.ndarray:
        mean, deviation = pixels.mean(), pixels.std()
        brightness = chance.uniform(-options.brightness, options.brightness) * deviation
        contrast = chance.uniform(*options.contrast)
        return ((pixels - mean) * contrast + (mean + brightness)).astype(np.float32)

    return _change(features, changed)


def noise(options: Noise, features: Features, chance: np.random.Generator) -> Features:
    return _change(features, lambda pixels: with_noise(pixels, options.sigma, chance))


def _change(features: Features, change: Any) -> Features:
    return {**features, "pixel_values": change(features["pixel_values"])}


def _factor(between: tuple[float, float], chance: np.random.Generator) -> float:
    """Drawn so that twice and half are as common."""
    return math.exp(chance.uniform(math.log(between[0]), math.log(between[1])))


def _sides(area: tuple[float, float], chance: np.random.Generator) -> tuple[float, float]:
    """Height and width of a part, as shares of the picture's."""
    share = chance.uniform(*area)
    aspect = _factor(_ASPECTS, chance)
    return min(1.0, math.sqrt(share / aspect)), min(1.0, math.sqrt(share * aspect))


def _bent(pixels: np.ndarray, points: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Each cell between new `points` (down, across, 2) shows the cell between the old places `sources`."""
    rows, columns = (range(count - 1) for count in points.shape[:2])
    cells = [
        (
            (*points[y, x].astype(int), *points[y + 1, x + 1].astype(int)),
            tuple(sources[[y, y + 1, y + 1, y], [x, x, x + 1, x + 1]].flatten()),
        )
        for y in rows
        for x in columns
    ]
    return _planes(pixels, "MESH", cells)


def _transformed(pixels: np.ndarray, back: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Each new place (x, y) shows the old place `back` · (x, y) + `start`."""
    (a, b), (c, d) = back
    return _planes(pixels, "AFFINE", (a, b, start[0], c, d, start[1]))


def _planes(pixels: np.ndarray, way: str, data: Any) -> np.ndarray:
    """Each channel through a transformation of Pillow's; what comes in from outside has the colour of the corners."""
    from PIL import Image

    _, height, width = pixels.shape
    corners = pixels[:, (0, 0, -1, -1), (0, -1, 0, -1)].mean(axis=1)
    planes = [
        Image.fromarray(plane).transform(
            (width, height),
            Image.Transform[way],
            data,
            resample=Image.Resampling.BILINEAR,
            fillcolor=float(corner),
        )
        for plane, corner in zip(pixels, corners, strict=True)
    ]
    return np.stack([np.asarray(plane) for plane in planes])

"""Augmentations of images, on `pixel_values`: float32 (3, height, width) of any scale."""

import math
from typing import Any

import numpy as np

from rayfuse.modalities.augment.base import add_gaussian_noise
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import (
    AffineImage,
    ColorJitterImage,
    CropImage,
    ElasticImage,
    EraseImage,
    FlipImage,
    GaussianNoise,
)

_ASPECT_RATIO_RANGE = (3 / 4, 4 / 3)
"""Aspect ratios of cropped and erased parts, relative to the image's."""


def affine(options: AffineImage, features: Features, rng: np.random.Generator) -> Features:
    """Rotate, shear, scale and translate about the center, with bilinear interpolation."""
    angle, shear = (math.radians(rng.uniform(-limit, limit)) for limit in (options.degrees, options.shear))
    size = _log_uniform(options.scale, rng)
    _, height, width = features["pixel_values"].shape
    move = rng.uniform(-options.translate, options.translate, 2) * (width, height)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ np.array([[1, math.tan(shear)], [0, 1]]) * size)
    middle = np.array([width, height]) / 2
    start = middle - back @ (middle + move)
    return _apply(features, lambda pixels: _affine_transform(pixels, back, start))


def elastic(options: ElasticImage, features: Features, rng: np.random.Generator) -> Features:
    """Displace the points of a grid, with bilinear interpolation between points and pixels."""
    _, height, width = features["pixel_values"].shape
    points = np.stack(
        np.meshgrid(*(np.linspace(0, side, options.control_points).round() for side in (width, height))),
        axis=2,
    )
    moves = rng.uniform(-options.strength, options.strength, points.shape) * (width, height)
    return _apply(features, lambda pixels: _mesh_transform(pixels, points, points + moves))


def resized_crop(options: CropImage, features: Features, rng: np.random.Generator) -> Features:
    """Crop a part with an aspect ratio of 3:4 to 4:3, and resize it to the size of the image."""
    _, height, width = features["pixel_values"].shape
    high, wide = _random_box_size(options.scale, rng)
    back = np.diag([wide, high])
    start = rng.uniform(0, 1, 2) * (1 - wide, 1 - high) * (width, height)
    return _apply(features, lambda pixels: _affine_transform(pixels, back, start))


def horizontal_flip(options: FlipImage, features: Features, rng: np.random.Generator) -> Features:
    """Flip left and right."""
    return _apply(features, lambda pixels: np.ascontiguousarray(pixels[:, :, ::-1]))


def erasing(options: EraseImage, features: Features, rng: np.random.Generator) -> Features:
    """Fill a random rectangle with the image's mean color (Zhong et al., 2020)."""
    pixels = features["pixel_values"].copy()
    _, height, width = pixels.shape
    relative_height, relative_width = _random_box_size(options.scale, rng)
    high, wide = round(relative_height * height), round(relative_width * width)
    top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
    pixels[:, top : top + high, left : left + wide] = pixels.mean(axis=(1, 2), keepdims=True)
    return {**features, "pixel_values": pixels}


def color_jitter(options: ColorJitterImage, features: Features, rng: np.random.Generator) -> Features:
    """Change brightness and contrast."""

    def changed(pixels: np.ndarray) -> np.ndarray:
        mean, deviation = pixels.mean(), pixels.std()
        brightness = rng.uniform(-options.brightness, options.brightness) * deviation
        contrast = rng.uniform(*options.contrast)
        return ((pixels - mean) * contrast + (mean + brightness)).astype(np.float32)

    return _apply(features, changed)


def gaussian_noise(options: GaussianNoise, features: Features, rng: np.random.Generator) -> Features:
    """Add Gaussian noise."""
    return _apply(features, lambda pixels: add_gaussian_noise(pixels, options.sigma, rng))


def _apply(features: Features, fn: Any) -> Features:
    return {**features, "pixel_values": fn(features["pixel_values"])}


def _log_uniform(between: tuple[float, float], rng: np.random.Generator) -> float:
    """Draw log-uniformly from a range."""
    return math.exp(rng.uniform(math.log(between[0]), math.log(between[1])))


def _random_box_size(area: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
    """Draw height and width of a part, as fractions of the image's."""
    fraction = rng.uniform(*area)
    aspect = _log_uniform(_ASPECT_RATIO_RANGE, rng)
    return min(1.0, math.sqrt(fraction / aspect)), min(1.0, math.sqrt(fraction * aspect))


def _mesh_transform(pixels: np.ndarray, points: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Map each grid cell of `points`, (rows, columns, 2), to the cell of `sources` in the original."""
    rows, columns = (range(count - 1) for count in points.shape[:2])
    cells = [
        (
            (*points[y, x].astype(int), *points[y + 1, x + 1].astype(int)),
            tuple(sources[[y, y + 1, y + 1, y], [x, x, x + 1, x + 1]].flatten()),
        )
        for y in rows
        for x in columns
    ]
    return _transform_channels(pixels, "MESH", cells)


def _affine_transform(pixels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Map each position (x, y) to `matrix` · (x, y) + `offset` in the original."""
    (a, b), (c, d) = matrix
    return _transform_channels(pixels, "AFFINE", (a, b, offset[0], c, d, offset[1]))


def _transform_channels(pixels: np.ndarray, method: str, data: Any) -> np.ndarray:
    """Transform each channel with Pillow, filled with the mean color of the corners outside the image."""
    from PIL import Image

    _, height, width = pixels.shape
    corners = pixels[:, (0, 0, -1, -1), (0, -1, 0, -1)].mean(axis=1)
    planes = [
        Image.fromarray(plane).transform(
            (width, height),
            Image.Transform[method],
            data,
            resample=Image.Resampling.BILINEAR,
            fillcolor=float(corner),
        )
        for plane, corner in zip(pixels, corners, strict=True)
    ]
    return np.stack([np.asarray(plane) for plane in planes])

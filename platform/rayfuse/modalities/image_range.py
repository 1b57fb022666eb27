"""Range of the values of images with more than 8 bits per channel: fitting, scaling, and findings about it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.base import InputFitter
from rayfuse.modalities.image_files import is_deep, open_image, read_deep_pixels
from rayfuse.spec.inputs import ImageInput
from rayfuse.spec.inputs.image import ValueRange
from rayfuse.spec.summary import Summary

WHITE = 255.0
"""Largest value of a scaled image; 0 is the smallest."""
_MAX_16_BITS = 65535
_PERCENTILES = (0.1, 99.9)
_PIXELS_PER_IMAGE = 4096
_FIRST_ROWS, _RUN, _GROWTH = 128, 8, 8
_FEW_LEVELS = 8
_SPAN_OF_DRAWINGS = 64
"""Difference of the brightest and darkest level from which few levels are those of a drawing."""


def scale_pixels(pixels: np.ndarray, limits: ValueRange) -> np.ndarray:
    """Scale the numbers of an image's file from a range to 0…255, float32, and clip them.

    Raises InvalidInputError if the range is the one of the data type, and the numbers are outside of it.
    """
    low, high = limits if isinstance(limits, tuple) else _dtype_range(pixels)
    wide: Any = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
    wide -= low
    wide *= WHITE / (high - low)
    scaled: np.ndarray = np.clip(wide, 0, WHITE, out=wide).astype(np.float32, copy=False)
    return scaled


def _dtype_range(pixels: np.ndarray) -> tuple[float, float]:
    """Return 0 and the largest value of the data type: that of 16 bits for integers, 1 for floats."""
    high = 1.0 if pixels.dtype.kind == "f" else float(_MAX_16_BITS)
    if pixels.min() < 0 or pixels.max() > high:
        raise InvalidInputError(
            f"pixels from {pixels.min():g} to {pixels.max():g} are outside 0 to {high:g}; set the `range` of this "
            "input, as in `range: [-1000, 3000]`"
        )
    return 0.0, high


class RowSample:
    """Choice of rows that are read: the first 128, then 8 in every further eighth; 700 of a million."""

    def __init__(self) -> None:
        self._row = 0
        self._stop = self._next = _FIRST_ROWS

    def take(self) -> bool:
        """Return whether the next row is in the sample."""
        row, self._row = self._row, self._row + 1
        if row == self._next:
            self._stop, self._next = row + _RUN, row + _RUN + row // _GROWTH
        return row < self._stop


class RangeFitter(InputFitter):
    """Range of the deep images in a sample of rows, without far outliers; that of the data type if there are none.

    Images of 8 bits are not decoded.
    """

    def __init__(self, options: ImageInput) -> None:
        self._options = options
        self._rows = RowSample()
        self._rng = np.random.default_rng(0)
        self._limits: list[tuple[float, float]] = []
        self._pixels: list[np.ndarray] = []

    def takes_next_row(self) -> bool:
        return self._rows.take()

    def partial_fit(self, value: Any) -> None:
        try:
            with open_image(value) as image:
                pixels = read_deep_pixels(image, value).ravel() if is_deep(image) else None
        except InvalidInputError:
            return
        if pixels is not None:
            chosen = self._rng.integers(0, len(pixels), _PIXELS_PER_IMAGE)
            self._pixels.append(pixels[chosen].astype(np.float64))
            self._limits.append((float(pixels.min()), float(pixels.max())))

    def finalize(self) -> ImageInput:
        return self._options.model_copy(update={"range": self._fitted_range() if self._limits else "dtype"})

    def _fitted_range(self) -> tuple[float, float]:
        """Return the smallest and largest value, at most as far from the common ones as these are apart."""
        lows, highs = zip(*self._limits, strict=True)
        low, high = np.percentile(np.concatenate(self._pixels), _PERCENTILES)
        spread = high - low
        if not spread:  # nearly all pixels are equal: the others are what there is to see
            low, high = min(lows), max(highs)
        fitted = max(min(lows), float(low - spread)), min(max(highs), float(high + spread))
        return fitted if fitted[0] < fitted[1] else (fitted[0], fitted[0] + 1.0)


class LevelSummary(Summary):
    """Images of a sample of rows that are almost uniform: they use only a few of the 256 levels of 8 bits."""

    def __init__(self, options: ImageInput) -> None:
        self._options = options
        self._rows = RowSample()
        self._seen = self._deep = self._shallow = 0

    def takes_next_row(self) -> bool:
        return self._rows.take()

    def update(self, value: Any) -> None:
        try:
            with open_image(value) as image:
                deep = is_deep(image)
                levels = _levels(image, value, self._options.range)
        except InvalidInputError:
            return
        self._seen += 1
        if levels is not None and levels[-1] - levels[0] < _SPAN_OF_DRAWINGS:
            self._deep += deep
            self._shallow += not deep and len(levels) > 1

    def lines(self) -> Iterator[str]:
        of = f"of {self._seen} sampled images have at most {_FEW_LEVELS} of 256 levels"
        if self._deep:
            yield (
                f"WARNING {self._deep} {of} in `range: {_format_range(self._options.range)}`; "
                "`range: auto` fits it to the training rows"
            )
        if 2 * self._shallow > self._seen:
            yield f"WARNING {self._shallow} {of}; if they were converted to 8 bits, use the original files"


def _levels(image: Any, content: bytes, limits: ValueRange) -> list[int] | None:
    """Return the gray levels of an image, sorted; None if there are more than a few."""
    from PIL import Image

    if is_deep(image):
        scaled = scale_pixels(read_deep_pixels(image, content), limits).mean(axis=-1)
        gray: Any = Image.fromarray(scaled.round().astype(np.uint8))
    else:
        image.draft("L", (_SPAN_OF_DRAWINGS, _SPAN_OF_DRAWINGS))  # decodes a JPEG faster
        gray = image.convert("L")
    counts = gray.getcolors(_FEW_LEVELS)
    return None if counts is None else sorted(level for _, level in counts)


def _format_range(limits: ValueRange) -> str:
    return f"[{limits[0]:g}, {limits[1]:g}]" if isinstance(limits, tuple) else limits

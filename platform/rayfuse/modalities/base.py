"""Interface of a modality: decoding and processing of values, and what serving, planning and explanations need."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.summary import Summary

Features = dict[str, np.ndarray]
"""Arrays that an encoder gets for one value, by the name of the encoder's argument."""

ValueFormat = Literal["file", "text", "json"]
"""Format of a value: the bytes of a file, a text, or numbers, lists and mappings as in JSON."""

Schema = dict[str, Any]
"""A JSON Schema (draft 2020-12, as in OpenAPI 3.1)."""

CLIP_LIMIT = 100.0
"""Scaled numbers are clipped to ±100, so that one outlier does not dominate a batch."""


@dataclass(frozen=True)
class SaliencyMap:
    """Grouping of the attributions of an input into regions, for reports and plots.

    The number of axes that remain after `sum_axes` decides how regions are reported and drawn: one axis is a timeline,
    two are an image (height, width), three are the frames of a video (frames, height, width).
    """

    feature: str
    """The floating-point feature that gets attributions."""
    sum_axes: tuple[int, ...] = ()
    """Axes of a value's feature that are summed, counted from the last (-1), such as color channels."""
    axis_label: str = "fraction of the duration"
    """Label of a timeline's axis, which runs from 0 to 1."""


class InputFitter(ABC):
    """Accumulator of what an input learns from the training rows, in a single pass."""

    def takes_next_row(self) -> bool:
        """Return whether the values of the next row are added; those of others are not read.

        Called once for each row. An input of large files may fit a sample of the rows.
        """
        return True

    @abstractmethod
    def partial_fit(self, value: Any) -> None:
        """Add a raw value; one that cannot be decoded is ignored, since validation reports it."""

    @abstractmethod
    def finalize(self) -> Any:
        """Return the input's options, fitted. Raises DataError if the values do not suffice."""


class Modality(ABC):
    """Convert one value of a row or request into the features of its encoder.

    Subclasses implement `decode`, `process` and `dummy_features`; all else has a default. Instances keep no state
    between calls, so that one instance serves many threads, and are cheap to build: processors and vocabularies are
    loaded at their first use.
    """

    value_formats: ClassVar[tuple[ValueFormat, ...]] = ("file",)
    """Formats in which rows and requests give a value."""
    media_types: ClassVar[tuple[str, ...]] = ("application/octet-stream", "application/json", "text/plain")
    """HTTP media types that a request may send: full names, or prefixes that end in `/`."""
    example_filename: ClassVar[str] = "FILE"
    """Name of a file in example commands."""
    is_isolated: ClassVar[bool] = False
    """True if endpoints decode files in a process with limited memory and time, since decoders may crash."""

    def __init__(self, options: Any) -> None:
        """Store the input's options: its spec model, or a custom modality's validated `Options`."""
        self.options = options

    @classmethod
    def fitter(cls, options: Any) -> InputFitter | None:
        """Return the accumulator of scales and vocabularies; None if nothing is learned from the training rows."""
        return None

    @classmethod
    def fit(cls, options: Any, values: Iterable[Any]) -> Any:
        """Return the options fitted to raw values, which are read once. Raises DataError if they do not suffice."""
        fitter = cls.fitter(options)
        if fitter is None:
            return options
        for value in values:
            fitter.partial_fit(value)
        return fitter.finalize()

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """Open and validate a raw value.

        Raises InvalidInputError if the value is invalid, and MissingInputError if it is valid without content for
        this input, such as a video without an audio track.
        """

    @abstractmethod
    def process(self, decoded: Any) -> Features:
        """Convert a decoded value to features."""

    def to_arrays(self, decoded: Any) -> Features:
        """Return what `process_arrays` needs of a decoded value, as arrays that another process can send."""
        return self.process(decoded)

    def process_arrays(self, arrays: Features) -> Features:
        """Convert the result of `to_arrays` to features, the same as `process` returns."""
        return arrays

    @abstractmethod
    def dummy_features(self) -> Features:
        """Return the smallest valid features, which a worker encodes if none of its rows has this input."""

    def content(self, value: Any) -> Any:
        """Return what decides the features of a value, and is hashed to recognize it: by default the value itself."""
        return value

    def sources(self, decoded: Any) -> list[dict[str, Any]]:
        """Return where a decoded value was found, as JSON; empty for a value that was given."""
        return []

    def num_steps(self, decoded: Any) -> int:
        """Return the length of a decoded value along which batches are padded; 0 if all values have one size."""
        return 0

    def summary(self) -> Summary | None:
        """Return the accumulator of raw values for warnings such as unknown categories; None if there are none."""
        return None

    def collate(self, rows: list[Features]) -> Features:
        """Stack the features of several samples along a new first axis."""
        return {name: _stack(name, [row[name] for row in rows]) for name in rows[0]}

    def json_schema(self) -> Schema:
        """Return the JSON Schema of a value in a JSON body; used if `value_formats` has `text` or `json`."""
        return {"type": "string"} if "text" in self.value_formats else {}

    def example(self) -> Any:
        """Return a valid raw value for the API documentation; bytes for a file, None for no example."""
        return "text" if "text" in self.value_formats else None

    def load_libraries(self) -> None:
        """Import what decoding any file needs, as files are then decoded within little memory; decode the example."""
        if isinstance(example := self.example(), bytes):
            self.to_arrays(self.decode(example))

    def description(self) -> str:
        """Return one line about a value and how much of it is read."""
        return f"a value of {type(self).__name__}"

    def curl_field(self, name: str) -> str:
        """Return the part of a curl command that sends a value of the input `name`."""
        if self.value_formats == ("file",):
            return f"-F {name}=@{self.example_filename}"
        return f"-F {name}='…'"

    @property
    def length_field(self) -> str | None:
        """Field of `options` that bounds the length of a value, such as `max_tokens`; None if there is none."""
        return getattr(self.options, "length_field", None)

    @property
    def length_mask(self) -> str | None:
        """Feature that is 1 at each step of a value and 0 at padding; None if values are not padded."""
        return getattr(self.options, "length_mask", None)

    def with_assumed_statistics(self) -> tuple[Any, list[str]]:
        """Return the options with assumed values for what `fit` would find, and notes about the assumptions.

        Resource estimation uses them when it runs without reading the training rows.
        """
        return self.options, []

    def longest_features(self, as_words: bool = False) -> Features:
        """Return the features of a value of the maximum length, for resource estimation.

        `as_words`: texts are given as lists of words, because a task labels single words.
        """
        return self.dummy_features()

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        """Return how attributions of a value's features, of the given shapes, are grouped; None for no saliency."""
        return None


def object_schema(properties: Schema) -> Schema:
    """Return the JSON Schema of an object with the given properties, all of them required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: samples of different shapes ({', '.join(map(str, sorted(shapes)))}) cannot be stacked; "
            "use a pretrained encoder whose processor resizes all values to one shape"
        )
    return np.stack(arrays)


def pad(arrays: list[np.ndarray], axis: int, fill_value: float = 0) -> np.ndarray:
    """Stack arrays that differ in length along `axis`, with the shorter ones padded at their end."""
    longest = max(array.shape[axis] for array in arrays)
    shape = list(arrays[0].shape)
    shape[axis] = longest
    stacked = np.full((len(arrays), *shape), fill_value, dtype=arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return stacked


def check_unicode(text: str, prefix: str = "") -> None:
    """Raise InvalidInputError, whose text begins with `prefix`, for a text that UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{prefix}lone surrogate \\u{ord(text[error.start]):x} at position {error.start}; "
            "encode the text as UTF-8"
        ) from None

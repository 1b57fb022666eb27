"""Time series: values of several channels over time, of any length, with missing values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.formatting import plural, truncated_repr
from rayfuse.modalities.base import CLIP_LIMIT, Features, InputFitter, Modality, Schema, object_schema, pad
from rayfuse.modalities.scalers import RobustFitter, ScalerFitter, StandardFitter
from rayfuse.modalities.timeseries_files import (
    PARQUET,
    check_values,
    out_of_range,
    read_csv,
    read_json,
    read_parquet,
)
from rayfuse.spec.inputs import TimeseriesInput

_BOM = b"\xef\xbb\xbf"
_MAX_NAMES_SHOWN = 40
_NUMBER_TYPES = {bool, int, float, type(None)}


class TimeSeriesModality(Modality):
    """Time series of several channels.

    Features: `values`, float32 (channels, steps), scaled, 0 where missing; `observed`, float32 (channels, steps), 1
    where a value is present; `step_mask`, int64 (steps,).
    """

    options: TimeseriesInput
    value_formats = ("json", "file")
    media_types = (
        "application/json",
        "text/",
        "application/vnd.apache.parquet",
        "application/octet-stream",
    )
    is_isolated = True

    @classmethod
    def fitter(cls, options: TimeseriesInput) -> InputFitter | None:
        if options.center is not None and options.scale is not None:
            return None
        return _ChannelFitter(cls(options))

    def decode(self, value: Any) -> np.ndarray:
        """Decode lists of values, {channel: values}, or a csv, parquet or JSON file of these.

        Returns the newest `max_steps` steps, float64 (channels, steps), NaN where a value is missing.
        """
        if isinstance(value, bytes):
            value = self._from_file(value)
        else:
            value = self._channels_first(value)
        if isinstance(value, Mapping):
            rows = self._channels_by_name(value)
        elif isinstance(value, (list, tuple)):
            rows = self._channels_by_order(value)
        else:
            raise InvalidInputError(
                f"expected a list of values for each channel, or a file, got {type(value).__name__}"
            )
        decoded = self._stack_channels(rows)
        if np.isnan(decoded).all():
            raise MissingInputError("the time series has no values")
        return decoded

    def _channels_first(self, value: Any) -> Any:
        """Return lists of channels for lists of steps, if `layout` is channels_last; other values unchanged."""
        if self.options.layout == "channels_first" or not isinstance(value, (list, tuple)):
            return value
        if not any(isinstance(step, (list, tuple, np.ndarray)) for step in value):
            return value  # of a single channel
        count = self.options.num_channels
        for place, step in enumerate(value):
            if not isinstance(step, (list, tuple, np.ndarray)) or len(step) != count:
                raise InvalidInputError(
                    f"step {place}: expected a list of {plural(count, 'value')}, one per channel (layout: channels_last)"
                )
        return [list(channel) for channel in zip(*value, strict=True)]

    def process(self, decoded: np.ndarray) -> Features:
        observed = ~np.isnan(decoded)
        scaled = np.clip((decoded - self._center) / self._scale, -CLIP_LIMIT, CLIP_LIMIT)
        return {
            "values": np.where(observed, scaled, 0).astype(np.float32),
            "observed": observed.astype(np.float32),
            "step_mask": np.ones(decoded.shape[1], dtype=np.int64),
        }

    def num_steps(self, decoded: np.ndarray) -> int:
        """Return the number of steps."""
        return decoded.shape[1]

    def dummy_features(self) -> Features:
        return self.process(np.repeat(self._center, 1, axis=1))

    def longest_features(self, as_words: bool = False) -> Features:
        return self.process(np.zeros((self.options.num_channels, self.options.max_steps)))

    def with_assumed_statistics(self) -> tuple[TimeseriesInput, list[str]]:
        """Assume center 0 and scale 1."""
        count = self.options.num_channels
        return self.options.model_copy(update={"center": [0.0] * count, "scale": [1.0] * count}), []

    def json_schema(self) -> Schema:
        names, count = self.options.channel_names, self.options.num_channels
        steps = {"type": "array", "items": {"type": ["number", "boolean", "null"]}, "minItems": 1}
        channels = {"type": "array", "items": steps, "minItems": count, "maxItems": count}
        if self.options.layout == "channels_last":
            channels = {
                "type": "array",
                "items": {**steps, "minItems": count, "maxItems": count},
                "minItems": 1,
            }
        if names is None:
            return channels
        named = {**object_schema(dict.fromkeys(names, steps)), "description": "values of each channel"}
        return {"anyOf": [channels, named]}

    def example(self) -> Any:
        center = self.options.center or [0.0] * self.options.num_channels
        values = [[round(value, 3), None, round(value, 3)] for value in center]
        names = self.options.channel_names
        if names is None and self.options.layout == "channels_last":
            return [list(step) for step in zip(*values, strict=True)]
        return values if names is None else dict(zip(names, values, strict=True))

    def load_libraries(self) -> None:
        """Import what parquet files need."""
        import pyarrow.parquet  # noqa: F401

    def description(self) -> str:
        options = self.options
        return f"values of {options.num_channels} channels; the newest {options.max_steps} steps are read"

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: (rows, channels, steps)."""
        axes = {"values": 1, "observed": 1, "step_mask": 0}
        return {name: pad([row[name] for row in rows], axis) for name, axis in axes.items()}

    def _channels_by_name(self, value: Mapping[str, Any]) -> list[Any]:
        names = self.options.channel_names
        if names is None:
            return self._channels_by_order(list(value.values()))
        absent = [name for name in names if name not in value]
        if absent:
            raise InvalidInputError(
                f"channel `{absent[0]}` is missing; given: {_join_names(value)}; required: {_join_names(names)}"
            )
        return [value[name] for name in names]

    def _channels_by_order(self, value: Sequence[Any]) -> list[Any]:
        rows = list(value)
        if self.options.num_channels == 1 and rows and not isinstance(rows[0], (list, tuple, np.ndarray)):
            return [rows]
        if len(rows) != self.options.num_channels:
            named = f" ({_join_names(self.options.channel_names)})" if self.options.channel_names else ""
            raise InvalidInputError(
                f"{plural(len(rows), 'channel')}, but this input has {self.options.num_channels}{named}; "
                "give a list of values for each channel"
            )
        return rows

    def _stack_channels(self, rows: list[Any]) -> np.ndarray:
        channels = [_parse_channel(self._channel_name(place), row) for place, row in enumerate(rows)]
        for place, channel in enumerate(channels):
            if len(channel) != len(channels[0]):
                raise InvalidInputError(
                    f"channel {self._channel_name(place)} has {plural(len(channel), 'step')} and {self._channel_name(0)} {len(channels[0])}; "
                    "use null for missing values"
                )
        if not len(channels[0]):
            raise InvalidInputError("the time series has no steps")
        return np.stack([channel[-self.options.max_steps :] for channel in channels])

    def _from_file(self, content: bytes) -> Any:
        """Read {channel: values}, or lists of values, from a csv, parquet or JSON file."""
        content = content.removeprefix(_BOM)
        if not content.strip():
            raise InvalidInputError("the file is empty")
        if content.startswith(PARQUET):
            return read_parquet(content, self.options)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"neither parquet nor UTF-8 text (byte {error.start})") from None
        if text.lstrip()[:1] in ("[", "{"):
            return self._channels_first(read_json(text))
        return read_csv(text, self.options)

    def _channel_name(self, place: int) -> str:
        return self.options.channel_names[place] if self.options.channel_names else str(place)

    @cached_property
    def _center(self) -> np.ndarray:
        return np.array(self.options.center, dtype=np.float64)[:, None]

    @cached_property
    def _scale(self) -> np.ndarray:
        return np.array(self.options.scale, dtype=np.float64)[:, None]


class _ChannelFitter(InputFitter):
    """Center and scale of each channel."""

    def __init__(self, modality: TimeSeriesModality) -> None:
        options = modality.options
        self._modality = modality
        scaler = RobustFitter if options.scaling == "robust" else StandardFitter
        self._channels = [scaler() for _ in range(options.num_channels)]
        self._reason = "no row has a readable value"

    def partial_fit(self, value: Any) -> None:
        try:
            decoded = self._modality.decode(value)
        except InvalidInputError as error:
            self._reason = f"the last error: {error}"
            return
        for channel, numbers in zip(self._channels, decoded, strict=True):
            channel.partial_fit(numbers[~np.isnan(numbers)])

    def finalize(self) -> TimeseriesInput:
        if not any(channel.count for channel in self._channels):
            raise DataError(f"no training row has a valid time series; {self._reason}")
        options = self._modality.options
        found = [_channel_scale(options, number, channel) for number, channel in enumerate(self._channels)]
        center, scale = map(list, zip(*found, strict=True))
        return options.model_copy(
            update={"center": options.center or center, "scale": options.scale or scale}
        )


def _channel_scale(options: TimeseriesInput, number: int, channel: ScalerFitter) -> tuple[float, float]:
    if not channel.count:
        name = options.channel_names[number] if options.channel_names else number
        raise DataError(f"channel {name}: no training row has a value; leave the channel out")
    return channel.center_and_scale()


def _parse_channel(name: str, row: Any) -> np.ndarray:
    """Parse one channel to float64 (steps,)."""
    if not isinstance(row, (list, tuple, np.ndarray)):
        raise InvalidInputError(f"channel {name}: expected a list of values, got {type(row).__name__}")
    if isinstance(row, np.ndarray) and row.dtype.kind in "iufb":
        array = row
    elif row and all(isinstance(value, (list, tuple, np.ndarray)) for value in row):
        raise InvalidInputError(f"channel {name}: expected numbers, got lists of numbers")
    elif not set(map(type, row)) <= _NUMBER_TYPES:  # an array of texts has the size of the longest for each
        array = np.fromiter((_parse_value(name, value) for value in row), np.float64, len(row))
    else:
        array = _to_array(name, row)
    if array.ndim != 1:
        raise InvalidInputError(f"channel {name}: expected numbers, got lists of numbers")
    array = array.astype(np.float64, copy=False)
    check_values(name, array)
    return array


def _to_array(name: str, row: Any) -> np.ndarray:
    try:
        return np.array(row, dtype=np.float64)
    except OverflowError:
        raise out_of_range(name) from None


def _parse_value(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (bool, int, float, Decimal, np.number, np.bool_)):
        raise InvalidInputError(f"channel {name}: expected a number or null, got {truncated_repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise out_of_range(name) from None


def _join_names(names: Iterable[Any]) -> str:
    shown = list(map(str, names))
    return ", ".join(shown[:_MAX_NAMES_SHOWN]) + (", …" if len(shown) > _MAX_NAMES_SHOWN else "")

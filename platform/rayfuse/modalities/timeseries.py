"""Time series: values of several channels over time, of any length, with missing values."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.formatting import plural, truncated_repr
from rayfuse.modalities.base import CLIP_LIMIT, Features, InputFitter, Modality, Schema, object_schema, pad
from rayfuse.modalities.scalers import RobustFitter, ScalerFitter, StandardFitter
from rayfuse.spec.inputs import TimeseriesInput

_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_NULL_CELLS = ("", "nan", "null", "none", "na")
_MAX_ABS_VALUE = 1e30  # larger values overflow float32 after scaling
_MAX_VALUES = 50_000_000
_MAX_NAMES_SHOWN = 40


class TimeSeriesModality(Modality):
    """Time series of several channels.

    Features: `values`, float32 (channels, steps), scaled, 0 where missing; `observed`, float32 (channels, steps), 1
    where a value is present; `step_mask`, int64 (steps,).
    """

    options: TimeseriesInput
    value_formats = ("json", "file")
    media_types = (
        "application/json",
        "text/csv",
        "text/plain",
        "application/vnd.apache.parquet",
        "application/octet-stream",
    )

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
            value = _from_file(value)
        if isinstance(value, Mapping):
            rows = self._channels_by_name(value)
        elif isinstance(value, (list, tuple)):
            rows = self._channels_by_order(value)
        else:
            raise InvalidInputError(
                f"expected a list of values for each channel, or a file, got {type(value).__name__}"
            )
        decoded = self._stack_channels(rows)[:, -self.options.max_steps :]
        if np.isnan(decoded).all():
            raise MissingInputError("the time series has no values")
        return decoded

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
        steps = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1}
        channels = {"type": "array", "items": steps, "minItems": count, "maxItems": count}
        if names is None:
            return channels
        named = {**object_schema(dict.fromkeys(names, steps)), "description": "values of each channel"}
        return {"anyOf": [channels, named]}

    def example(self) -> Any:
        center = self.options.center or [0.0] * self.options.num_channels
        values = [[round(value, 3), None, round(value, 3)] for value in center]
        names = self.options.channel_names
        return values if names is None else dict(zip(names, values, strict=True))

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
        return np.stack(channels)

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
    try:
        array = np.asarray(row)
    except ValueError:  # lists of different lengths
        array = np.array(row, dtype=object)
    if array.dtype.kind not in "iufb":
        array = np.array([_parse_value(name, value) for value in row], dtype=np.float64)
    if array.ndim != 1:
        raise InvalidInputError(f"channel {name}: expected numbers, got lists of numbers")
    array = array.astype(np.float64)
    if (np.abs(array) > _MAX_ABS_VALUE).any():  # NaN compares as False
        raise InvalidInputError(f"channel {name}: a value is infinite or above {_MAX_ABS_VALUE:g}")
    return array


def _parse_value(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (bool, int, float)):
        raise InvalidInputError(f"channel {name}: expected a number or null, got {truncated_repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError(f"channel {name}: a value is infinite or above {_MAX_ABS_VALUE:g}") from None


def _from_file(content: bytes) -> Any:
    """Read {channel: values}, or lists of values, from a csv, parquet or JSON file."""
    content = content.removeprefix(_BOM)
    if not content.strip():
        raise InvalidInputError("the file is empty")
    if content.startswith(_PARQUET):
        return _from_parquet(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"neither parquet nor UTF-8 text (byte {error.start})") from None
    return _from_json(text) if text.lstrip()[:1] in ("[", "{") else _from_csv(text)


def _from_parquet(content: bytes) -> dict[str, Any]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows * file.metadata.num_columns > _MAX_VALUES:
            raise InvalidInputError(f"more than {_MAX_VALUES} values; shorten the series")
        columns: dict[str, Any] = file.read().to_pydict()
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"not a readable parquet file: {reason}") from None
    return columns


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"not JSON: {error}") from None


def _from_csv(text: str) -> Any:
    """Read a column per channel and a line per step; the first line may hold the channel names."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise InvalidInputError(f"not CSV: {error}") from None
    if not lines:
        raise InvalidInputError("the file is empty")
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise InvalidInputError(f"line {number} has {len(line)} cells, the first {len(lines[0])}")
    first = [_parse_cell(cell) for cell in lines[0]]
    if any(isinstance(cell, float) for cell in first):
        return [list(map(_parse_cell, column)) for column in zip(*lines, strict=True)]
    header = [cell.strip() for cell in lines[0]]
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise InvalidInputError(f"{count} columns have the name `{name}`; rename all but one")
    columns = zip(*lines[1:], strict=True) if len(lines) > 1 else ([] for _ in header)
    return {name: list(map(_parse_cell, column)) for name, column in zip(header, columns, strict=True)}


def _parse_cell(cell: str) -> float | str | None:
    """Parse a cell to a number, None if it is missing, or its text if it is not a number."""
    cell = cell.strip()
    if cell.lower() in _NULL_CELLS:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def _join_names(names: Iterable[Any]) -> str:
    shown = list(map(str, names))
    return ", ".join(shown[:_MAX_NAMES_SHOWN]) + (", …" if len(shown) > _MAX_NAMES_SHOWN else "")

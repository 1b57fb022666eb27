"""Readings of several channels over time, of any length, some of them missing."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rayfuse.errors import BadInput, DataError, MissingInput
from rayfuse.modalities.base import FARTHEST, Features, Modality, pad
from rayfuse.modalities.scales import Moments, Numbers, Sampled
from rayfuse.spec.inputs import SeriesInput

_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_NO_READING = ("", "nan", "null", "none", "na")
_LARGEST = 1e30  # what float32 still holds after scaling
_MOST_READINGS = 50_000_000
_SHOWN = 40


class SeriesModality(Modality):
    """Features `values`: float32 (channels, steps), scaled, 0 where missing.

    `observed`: float32 (channels, steps), 1 where measured; `step_mask`: int64 (steps,).
    """

    forms = ("json", "file")
    media_types = (
        "application/json",
        "text/csv",
        "text/plain",
        "application/vnd.apache.parquet",
        "application/octet-stream",
    )

    def __init__(self, options: SeriesInput) -> None:
        self.options = options

    @classmethod
    def fitted(cls, options: SeriesInput, values: Iterable[Any]) -> SeriesInput:
        """The middle and the scale of each channel; robust ones from a sample where there are many readings."""
        if options.center is not None and options.scale is not None:
            return options
        whole = cls(options)
        kind = Sampled if options.scaling == "robust" else Moments
        channels = [kind() for _ in range(options.count)]
        reason = "none has one"
        for value in values:
            try:
                decoded = whole.decode(value)
            except BadInput as error:  # named again when all rows are checked
                reason = f"the last one: {error}"
                continue
            for channel, readings in zip(channels, decoded, strict=True):
                channel.add(readings[~np.isnan(readings)])
        if not any(channel.count for channel in channels):
            raise DataError(f"no training row has a series that can be read; {reason}")
        found = [_scale(options, number, channel) for number, channel in enumerate(channels)]
        center, scale = map(list, zip(*found, strict=True))
        return options.model_copy(
            update={"center": options.center or center, "scale": options.scale or scale}
        )

    def decode(self, value: Any) -> np.ndarray:
        """Channels × steps, or {channel: steps}, or a csv, parquet or JSON file of them → float64 (channels, steps).

        NaN where a reading is missing; the newest `max_steps` steps.
        """
        if isinstance(value, bytes):
            value = _from_file(value)
        if isinstance(value, Mapping):
            rows = self._by_name(value)
        elif isinstance(value, (list, tuple)):
            rows = self._by_order(value)
        else:
            raise BadInput(f"lists of readings, or a file of them, belong here, not {type(value).__name__}")
        readings = self._together(rows)[:, -self.options.max_steps :]
        if np.isnan(readings).all():
            raise MissingInput("it holds no reading")
        return readings

    def process(self, decoded: np.ndarray) -> Features:
        observed = ~np.isnan(decoded)
        scaled = np.clip((decoded - self._center) / self._scale, -FARTHEST, FARTHEST)
        return {
            "values": np.where(observed, scaled, 0).astype(np.float32),
            "observed": observed.astype(np.float32),
            "step_mask": np.ones(decoded.shape[1], dtype=np.int64),
        }

    def steps(self, decoded: np.ndarray) -> int:
        """Steps."""
        return decoded.shape[1]

    def blank(self) -> Features:
        return self.process(np.repeat(self._center, 1, axis=1))

    def collate(self, rows: list[Features]) -> Features:
        """Pad on the right to the longest row: (rows, channels, steps)."""
        axes = {"values": 1, "observed": 1, "step_mask": 0}
        return {name: pad([row[name] for row in rows], axis) for name, axis in axes.items()}

    def _by_name(self, value: Mapping[str, Any]) -> list[Any]:
        names = self.options.names
        if names is None:
            return self._by_order(list(value.values()))
        absent = [name for name in names if name not in value]
        if absent:
            raise BadInput(
                f"no channel `{absent[0]}`; it has: {_listed(value)}, and this input reads: {_listed(names)}"
            )
        return [value[name] for name in names]

    def _by_order(self, value: Sequence[Any]) -> list[Any]:
        rows = list(value)
        if self.options.count == 1 and rows and not isinstance(rows[0], (list, tuple, np.ndarray)):
            return [rows]
        if len(rows) != self.options.count:
            named = f" ({_listed(self.options.names)})" if self.options.names else ""
            raise BadInput(
                f"{_channels(len(rows))}, but this input has {self.options.count}{named}; "
                "give a list of readings for each channel"
            )
        return rows

    def _together(self, rows: list[Any]) -> np.ndarray:
        channels = [_readings(self._name(place), row) for place, row in enumerate(rows)]
        for place, channel in enumerate(channels):
            if len(channel) != len(channels[0]):
                raise BadInput(
                    f"channel {self._name(place)} has {len(channel)} steps and {self._name(0)} {len(channels[0])}; "
                    "write null where a reading is missing"
                )
        if not len(channels[0]):
            raise BadInput("it has no steps")
        return np.stack(channels)

    def _name(self, place: int) -> str:
        return self.options.names[place] if self.options.names else str(place)

    @cached_property
    def _center(self) -> np.ndarray:
        return np.array(self.options.center, dtype=np.float64)[:, None]

    @cached_property
    def _scale(self) -> np.ndarray:
        return np.array(self.options.scale, dtype=np.float64)[:, None]


def _scale(options: SeriesInput, number: int, channel: Numbers) -> tuple[float, float]:
    if not channel.count:
        name = options.names[number] if options.names else number
        raise DataError(f"channel {name}: no training row has a reading of it; leave the channel out")
    return channel.scale()


def _readings(name: str, row: Any) -> np.ndarray:
    """float64 (steps,) of one channel."""
    if not isinstance(row, (list, tuple, np.ndarray)):
        raise BadInput(f"channel {name}: a list of readings belongs here, not {type(row).__name__}")
    try:
        array = np.asarray(row)
        if array.dtype.kind not in "iufb":
            array = np.array([_reading(value) for value in row], dtype=np.float64)
    except (ValueError, OverflowError):
        raise BadInput(f"channel {name}: its readings are not numbers or null, or too large") from None
    if array.ndim != 1:
        raise BadInput(f"channel {name}: numbers belong here, not lists of them")
    array = array.astype(np.float64)
    if (np.abs(array) > _LARGEST).any():  # NaN is not greater than anything
        raise BadInput(f"channel {name}: a reading is infinite or too large")
    return array


def _reading(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise ValueError


def _from_file(content: bytes) -> Any:
    """What a csv, parquet or JSON file holds: {channel: readings}, or lists of readings."""
    content = content.removeprefix(_BOM)
    if not content.strip():
        raise BadInput("the file is empty")
    if content.startswith(_PARQUET):
        return _from_parquet(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"neither parquet nor a text in UTF-8 (byte {error.start})") from None
    return _from_json(text) if text.lstrip()[:1] in ("[", "{") else _from_csv(text)


def _from_parquet(content: bytes) -> dict[str, Any]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows * file.metadata.num_columns > _MOST_READINGS:
            raise BadInput(f"more than {_MOST_READINGS} readings")
        columns: dict[str, Any] = file.read().to_pydict()
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"not a whole parquet file: {reason}") from None
    return columns


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None


def _from_csv(text: str) -> Any:
    """A column per channel and a line per step; the first line may hold the channels' names."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise BadInput(f"not CSV: {error}") from None
    if not lines:
        raise BadInput("the file is empty")
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise BadInput(f"line {number} has {len(line)} cells, the first {len(lines[0])}")
    first = [_cell(cell) for cell in lines[0]]
    if any(isinstance(cell, float) for cell in first):
        return [list(map(_cell, column)) for column in zip(*lines, strict=True)]
    header = [cell.strip() for cell in lines[0]]
    if len(set(header)) < len(header):
        raise BadInput("two of its columns have the same name")
    columns = zip(*lines[1:], strict=True) if len(lines) > 1 else ([] for _ in header)
    return {name: list(map(_cell, column)) for name, column in zip(header, columns, strict=True)}


def _cell(cell: str) -> float | str | None:
    """A reading, None where it is missing, or the text that it is instead."""
    cell = cell.strip()
    if cell.lower() in _NO_READING:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _listed(names: Iterable[Any]) -> str:
    shown = list(map(str, names))
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")

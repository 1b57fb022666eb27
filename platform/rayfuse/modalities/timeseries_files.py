"""Files of time series: csv, parquet and JSON, of which only the newest steps are held in memory."""

import csv
import io
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from rayfuse.errors import InvalidInputError
from rayfuse.formatting import truncated_repr
from rayfuse.modalities.decode_memory import reserve
from rayfuse.modalities.parquet_pages import check_pages, open_parquet
from rayfuse.spec.cells import DELIMITERS, CellParser, cell_parser, find_delimiter, split_cells
from rayfuse.spec.inputs import TimeseriesInput
from rayfuse.spec.nesting import json_memory

PARQUET = b"PAR1"
"""First bytes of a parquet file."""
_MAX_ABS_VALUE = 1e30  # larger values overflow float32 after scaling
_MAX_VALUES = 50_000_000
_MAX_COLUMNS = 100_000
_CSV_FACTOR = 8
"""Bytes of memory per character of a csv file."""
_SAMPLE_LINES = 32
_BATCH_VALUES = 1_000_000
"""Values of all channels that are converted at once."""
_BATCH_CELLS = 65_536


def check_values(name: str, values: np.ndarray) -> None:
    """Raise InvalidInputError if a value of a channel is infinite or too large; NaN is a missing value."""
    if len(values) and max(np.fmax.reduce(values), -np.fmin.reduce(values)) > _MAX_ABS_VALUE:
        raise out_of_range(name)


def out_of_range(name: str) -> InvalidInputError:
    """Return the error of a channel with a value that is too large."""
    return InvalidInputError(f"channel {name}: a value is infinite or above {_MAX_ABS_VALUE:g}")


def read_json(text: str) -> Any:
    """Parse a JSON file. Raises InvalidInputError if it is invalid, or takes too much memory."""
    reserve(json_memory(text), f"a JSON file of {len(text)} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"not JSON: {error}") from None


class _NewestSteps:
    """The newest values of a channel, checked."""

    def __init__(self, name: str, max_steps: int) -> None:
        self.name, self._max_steps = name, max_steps
        self._parts: list[np.ndarray] = []
        self._length = 0

    def add(self, values: np.ndarray) -> None:
        """Add values, float64 (steps,)."""
        check_values(self.name, values)
        self._parts.append(values)
        self._length += len(values)
        while self._length - len(self._parts[0]) >= self._max_steps:
            self._length -= len(self._parts.pop(0))

    def values(self) -> np.ndarray:
        """Return the newest values, float64 (steps,), at least as many as there are up to `max_steps`."""
        return np.concatenate(self._parts) if self._parts else np.empty(0)


def read_csv(text: str, options: TimeseriesInput) -> Any:
    """Read a column per channel and a line per step: {name: values} if the first line has names, else lists of values.

    Columns that are not channels have no values. Raises InvalidInputError if the file is invalid.
    """
    reserve(_CSV_FACTOR * len(text), f"a csv file of {len(text)} characters")
    records = _split_lines(text, options.decimal)
    first = next(records, None)
    if first is None:
        raise InvalidInputError("the file is empty")
    parse = cell_parser("float", options)
    names = [cell.strip() for cell in first]
    has_header = _is_header(names, list(map(parse, first)), options.channel_names)
    if has_header:
        _check_unique(names)
    wanted = _wanted_columns(names if has_header else None, len(first), options)
    labels = options.channel_names or list(map(str, range(options.num_channels)))
    columns = {
        place: _NewestSteps(name, options.max_steps) for place, name in zip(wanted, labels, strict=False)
    }
    steps = records if has_header else chain([first], records)
    batch_steps = max(1, _BATCH_CELLS // len(first))
    for batch in iter(lambda: list(islice(steps, batch_steps)), []):
        for place, column in columns.items():
            column.add(_parse_cells(column.name, (line[place] for line in batch), parse))
    found = [columns[place].values() if place in columns else None for place in range(len(first))]
    return dict(zip(names, found, strict=True)) if has_header else found


def _wanted_columns(names: list[str] | None, count: int, options: TimeseriesInput) -> list[int]:
    """Return the columns of the channels, in their order; none if the file has other ones."""
    if names is not None and options.channel_names:
        places = {name: place for place, name in enumerate(names)}
        known = options.channel_names
        return [places[name] for name in known] if set(known) <= set(places) else []
    return list(range(count)) if count == options.num_channels else []


def _parse_cells(name: str, cells: Iterator[str], parse: CellParser) -> np.ndarray:
    found = array("d")
    for cell in cells:
        value = parse(cell)
        if isinstance(value, str):
            raise InvalidInputError(f"channel {name}: expected a number or null, got {truncated_repr(value)}")
        found.append(math.nan if value is None else value)
    return np.frombuffer(found)


def _is_header(names: list[str], cells: Sequence[Any], channel_names: list[str] | None) -> bool:
    """Return whether a line has the names of the channels, which may be numbers, or only texts and missing cells."""
    if channel_names and set(names) >= set(channel_names):
        return True
    has_texts = any(isinstance(cell, str) for cell in cells)
    return has_texts and not any(isinstance(cell, float) for cell in cells)


def _check_unique(names: Sequence[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InvalidInputError(f"{count} columns have the name `{name}`; rename all but one")


def _split_lines(text: str, decimal: str) -> Iterator[list[str]]:
    """Yield the cells of each line of a csv file. Raises InvalidInputError if lines differ in their number."""
    text_lines = _check_columns(io.StringIO(text, newline=""))
    sample = list(islice(text_lines, _SAMPLE_LINES))
    delimiters = [sign for sign in DELIMITERS if sign != decimal]
    delimiters += [sign for sign in DELIMITERS if sign == decimal and '"' in text]
    delimiter = find_delimiter(sample, delimiters)
    width = None
    try:
        lines = filter(None, split_cells(chain(sample, text_lines), delimiter, strict=True))
        for number, line in enumerate(lines, 1):
            width = width or len(line)
            if len(line) != width:
                raise InvalidInputError(f"line {number} has {len(line)} cells, the first {width}")
            yield line
    except csv.Error as error:
        raise InvalidInputError(f"not CSV: {error}") from None


def _check_columns(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if len(line) > _MAX_COLUMNS and max(map(line.count, DELIMITERS)) > _MAX_COLUMNS:
            raise InvalidInputError(f"a line has more than {_MAX_COLUMNS} cells; write a line per step")
        yield line


def read_parquet(content: bytes, options: TimeseriesInput) -> dict[str, Any]:
    """Read {column: values}; columns that are not channels have no values.

    Raises InvalidInputError if the file is invalid, or takes too much memory.
    """
    from pyarrow import ArrowException

    try:
        file = open_parquet(content)
        schema = file.schema_arrow
        _check_unique(schema.names or [""])
        wanted = _wanted_columns(schema.names, len(schema.names), options)
        for place in wanted:
            _check_type(schema.field(place))
        if file.metadata.num_rows * max(1, len(wanted)) > _MAX_VALUES:
            raise InvalidInputError(f"more than {_MAX_VALUES} values; shorten the series")
        columns = {
            schema.names[place]: _NewestSteps(schema.names[place], options.max_steps) for place in wanted
        }
        check_pages(content, file.metadata, list(columns))
        for batch in (
            file.iter_batches(max(1, _BATCH_VALUES // len(wanted)), columns=list(columns), use_threads=False)
            if wanted
            else ()
        ):
            for name, column in columns.items():
                column.add(_to_floats(batch.column(name)))
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"not a readable parquet file: {reason}") from None
    return {name: columns[name].values() if name in columns else None for name in schema.names}


def _check_type(field: Any) -> None:
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if not any(check(kind) for check in checks):
        raise InvalidInputError(f"channel {field.name}: expected numbers, got a column of {kind}")


def _to_floats(values: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found: np.ndarray = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found

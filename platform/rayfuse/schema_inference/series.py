"""Channels of time series in files and in lists."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rayfuse.schema_inference.column import SeriesLayout
from rayfuse.schema_inference.numbers import is_number, parse_numbers


def layout_of_files(contents: Sequence[bytes]) -> tuple[SeriesLayout, int]:
    """Return the channels and the longest series of csv, parquet or JSON files. Raises ValueError for others."""
    found = [_read(content) for content in contents]
    first = found[0]
    steps = max(_num_steps(series) for series in found)
    if isinstance(first, Mapping):
        names = [name for name, values in first.items() if _are_numbers(values)]
        if not names:
            raise ValueError("no column of numbers")
        return SeriesLayout(names), steps
    return SeriesLayout(len(first)), steps


def layout_of_lists(values: Sequence[Sequence[Sequence[Any]]]) -> SeriesLayout:
    """Return the layout of lists of lists of numbers, whose outer lists are channels or steps.

    The axis whose length differs between rows has the steps; if both are fixed, the one along which numbers change less.
    """
    outer = {len(value) for value in values}
    inner = {len(part) for value in values for part in value}
    if len(outer) > 1 and len(inner) == 1:
        return SeriesLayout(inner.pop(), steps_first=True)
    if len(inner) > 1 or len(outer) > 1:
        return SeriesLayout(statistics.mode(len(value) for value in values))
    num_outer, num_inner = outer.pop(), inner.pop()
    roughness_inner = statistics.mean(_roughness(value) for value in values[:100])
    roughness_outer = statistics.mean(_roughness(list(zip(*value, strict=True))) for value in values[:100])
    if roughness_outer < roughness_inner and num_outer > 1:
        return SeriesLayout(num_inner, steps_first=True)
    return SeriesLayout(num_outer)


def _roughness(rows: Sequence[Sequence[Any]]) -> float:
    """Return the mean change between neighbors in the rows, relative to the range of all numbers."""
    numbers = [[float(number or 0) for number in row] for row in rows]
    changes = [abs(b - a) for row in numbers for a, b in pairwise(row)]
    flat = [number for row in numbers for number in row]
    spread = max(flat) - min(flat)
    return statistics.mean(changes) / spread if changes and spread else 1.0


def _read(content: bytes) -> Any:
    if content.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(content)).to_pydict()
    text = content.decode("utf-8-sig")
    if text.lstrip()[:1] in ("[", "{"):
        return json.loads(text)
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines:
        raise ValueError("an empty file")
    if parse_numbers(lines[0]) is not None:
        return [list(map(float, column)) for column in zip(*lines, strict=True)]
    columns = zip(*lines[1:], strict=True)
    return {name.strip(): parse_numbers(cells) for name, cells in zip(lines[0], columns, strict=True)}


def _num_steps(series: Any) -> int:
    channels = list(series.values()) if isinstance(series, Mapping) else series
    return max(len(channel) for channel in channels if channel is not None)


def _are_numbers(values: Any) -> bool:
    return values is not None and all(value is None or is_number(value) for value in values)

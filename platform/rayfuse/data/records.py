"""A row's values as bytes and back, exactly: JSON, and beside it what JSON does not know.

    RECORD   length of the JSON (4 bytes), the JSON of [line, values], then the contents of all `bytes` values

A value that JSON does not know is {"\\0rayfuse": KIND, "value": …}.
"""

import datetime
import json
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from rayfuse.errors import DataError

_MARK = "\0rayfuse"
_MARK_IN_JSON = rb"\u0000rayfuse"
_LENGTH = struct.Struct("<I")


def _from_timestamp(text: str) -> Any:
    import pandas as pd

    return pd.Timestamp(text)


_READ: dict[str, Callable[[Any], Any]] = {
    "Decimal": Decimal,
    "Timestamp": _from_timestamp,  # of nanoseconds; a datetime too
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
}
_WRITE: dict[str, Callable[[Any], Any]] = {
    "Decimal": str,
    "Timestamp": lambda value: value.isoformat(),
    "datetime": lambda value: value.isoformat(),
    "date": lambda value: value.isoformat(),
    "time": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
}
"""Kinds of values in parquet files, by the name of their type."""


def encode(line: int, values: Mapping[str, Any], origin: str) -> bytes:
    """The record of a row. Raises DataError for a value of a kind that no row holds."""
    contents: list[bytes] = []

    def unknown(value: Any) -> dict[str, Any]:
        kind = type(value).__name__
        if isinstance(value, bytes):
            start = sum(map(len, contents))
            contents.append(value)
            return {_MARK: "bytes", "value": [start, len(value)]}
        if kind not in _WRITE:
            raise DataError(f"{origin}: holds a {kind}; write it as text, number, time or bytes")
        return {_MARK: kind, "value": _WRITE[kind](value)}

    text = json.dumps([line, values], default=unknown).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *contents])


def decode(record: bytes) -> tuple[int, dict[str, Any]]:
    """The line and the values of a record."""
    end = _LENGTH.size + _LENGTH.unpack_from(record)[0]
    text = record[_LENGTH.size : end]

    def known(found: dict[str, Any]) -> Any:
        kind = found.get(_MARK)
        if kind == "bytes":
            start, length = found["value"]
            return record[end + start : end + start + length]
        return _READ[kind](found["value"]) if kind in _READ else found

    line, values = json.loads(text, object_hook=known if _MARK_IN_JSON in text else None)
    return line, values

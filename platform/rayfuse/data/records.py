"""Exact encoding of a row's values: JSON, with tags for types that JSON does not have, and the contents of bytes apart.

A value without a JSON type becomes a mapping of a tag to the name of its type; `bytes` become an index into the list of
contents.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rayfuse.data.embedded_files import ColumnPath, EmbeddedFile
from rayfuse.errors import DataError

_TYPE_TAG = "\0rayfuse"
_TYPE_TAG_JSON = r"\u0000rayfuse"


def _from_timestamp(text: str) -> Any:
    import pandas as pd

    return pd.Timestamp(text)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "Decimal": Decimal,
    "Timestamp": _from_timestamp,  # of nanoseconds; a subclass of datetime
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
}
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "Decimal": str,
    "Timestamp": lambda value: value.isoformat(),
    "datetime": lambda value: value.isoformat(),
    "date": lambda value: value.isoformat(),
    "time": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
}
"""Types of parquet values without a JSON type, by name."""


def encode_values(values: Mapping[str, Any], origin: str) -> tuple[str, list[bytes]]:
    """Return the values as JSON, and the contents of their `bytes`. Raises DataError for an unsupported type."""
    contents: list[bytes] = []

    def encode_other(value: Any) -> dict[str, Any]:
        kind = type(value).__name__
        if isinstance(value, bytes):
            contents.append(value)
            return {_TYPE_TAG: "bytes", "value": len(contents) - 1}
        if isinstance(value, EmbeddedFile):
            return {_TYPE_TAG: kind, "value": value.path}
        if kind not in _ENCODERS:
            raise DataError(
                f"{origin}: a value of type {kind} is not supported; write text, a number, a time or bytes"
            )
        return {_TYPE_TAG: kind, "value": _ENCODERS[kind](value)}

    return json.dumps(values, default=encode_other), contents


def decode_values(
    text: str, contents: Sequence[bytes], attach: Callable[[ColumnPath], EmbeddedFile] = EmbeddedFile
) -> dict[str, Any]:
    """Return the values of a row as they were before `encode_values`; `attach` opens the files inside the row."""

    def decode_tagged(found: dict[str, Any]) -> Any:
        kind = found.get(_TYPE_TAG)
        if kind == "bytes":
            return contents[found["value"]]
        if kind == "EmbeddedFile":
            return attach(tuple(found["value"]))
        return _DECODERS[kind](found["value"]) if kind in _DECODERS else found

    values: dict[str, Any] = json.loads(text, object_hook=decode_tagged if _TYPE_TAG_JSON in text else None)
    return values

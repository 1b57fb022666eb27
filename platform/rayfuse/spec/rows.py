"""Rows of a job: URLs in a spec file, or in Python a table in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import resolve_url

Urls = str | tuple[str, ...]
"""Data files: a file, a glob or a folder, or several of them."""
_SQLITE = "sqlite:///"
_URL = {"type": "string", "minLength": 1}


class InMemoryRows:
    """A table that a job was given instead of a URL; it is written to `output.storage` before training."""

    def __init__(self, table: Any) -> None:
        self.table = table
        """The table, as the user passed it."""

    def __repr__(self) -> str:
        return f"<{type(self.table).__name__} in memory>"


def is_table(value: Any) -> bool:
    """Return whether a value is a table in memory: a list of dicts, a data frame, or a dataset of Ray or Hugging Face.

    Every data frame with the Arrow interface counts (`__arrow_c_stream__`: pandas, pyarrow, polars). The libraries
    themselves are not imported.
    """
    if isinstance(value, (list, tuple)):
        return all(isinstance(row, Mapping) for row in value)
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "iter_batches") or _is_hf_dataset(value)


def _is_hf_dataset(value: Any) -> bool:
    return hasattr(value, "with_format") and hasattr(value, "features") and hasattr(value, "iter")


def _validate(value: Any, info: ValidationInfo) -> Urls | InMemoryRows:
    if isinstance(value, InMemoryRows):
        return value
    if isinstance(value, str) and value:
        return _resolve(value, info)
    if isinstance(value, (list, tuple)) and value and all(isinstance(url, str) and url for url in value):
        return tuple(_resolve(url, info) for url in value)
    if isinstance(value, Mapping) and all(hasattr(split, "column_names") for split in value.values()):
        splits = ", ".join(map(str, value))
        raise PydanticCustomError(
            "rows", "not one table; pass one split each of: {splits}", {"splits": splits}
        )
    is_empty = isinstance(value, (list, tuple)) and not any(value)
    if is_empty or not is_table(value):
        raise PydanticCustomError(
            "rows",
            "not a table of rows; write the path of a data file, a glob, a folder or a list of these, or in Python pass a DataFrame, an "
            "Arrow table, a list of dicts, or a dataset of Ray or Hugging Face",
        )
    return InMemoryRows(value)


def _resolve(url: str, info: ValidationInfo) -> str:
    """Resolve a relative path, also that of an SQLite database, against the folder of the spec's file."""
    path = url.removeprefix(_SQLITE)
    if path == url or path.startswith("/"):
        return resolve_url(url, info)
    path, separator, query = path.partition("?")
    return f"{_SQLITE}{Path(resolve_url(path, info)).absolute()}{separator}{query}"


def _serialize(value: Urls | InMemoryRows) -> str | list[str]:
    if not isinstance(value, InMemoryRows):
        return value if isinstance(value, str) else list(value)
    raise ValueError("rows in memory cannot be written to YAML; save them as parquet, and pass the path")


Rows = Annotated[
    Urls | InMemoryRows,
    PlainValidator(_validate),
    PlainSerializer(_serialize, return_type=str | list[str], when_used="json"),
    WithJsonSchema({"anyOf": [_URL, {"type": "array", "items": _URL, "minItems": 1}]}),
]
"""Data files: a file, a glob, a folder or a list of these, as paths relative to the spec's file or any fsspec URLs."""

"""Rows of a job: a URL in a spec file, or in Python a table in memory."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import resolve_url


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


def _validate(value: Any, info: ValidationInfo) -> str | InMemoryRows:
    if isinstance(value, InMemoryRows):
        return value
    if isinstance(value, str) and value:
        return resolve_url(value, info)
    if isinstance(value, Mapping) and all(hasattr(split, "column_names") for split in value.values()):
        splits = ", ".join(map(str, value))
        raise PydanticCustomError(
            "rows", "not one table; pass one split each of: {splits}", {"splits": splits}
        )
    if not is_table(value):
        raise PydanticCustomError(
            "rows",
            "not a table of rows; write the path of jsonl, csv or parquet files, or in Python pass a DataFrame, an "
            "Arrow table, a list of dicts, or a dataset of Ray or Hugging Face",
        )
    return InMemoryRows(value)


def _serialize(value: str | InMemoryRows) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("rows in memory cannot be written to YAML; save them as parquet, and pass the path")


Rows = Annotated[
    str | InMemoryRows,
    PlainValidator(_validate),
    PlainSerializer(_serialize, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""jsonl, csv or parquet: a file, a glob or a folder, as a path relative to the spec's file or any fsspec URL."""

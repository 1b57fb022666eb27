"""Samples of columns, as if a file had been read."""

from typing import Any

from rayfuse.schema_inference.sample import Sample


def make_sample(columns: dict[str, list[Any]], is_untyped: bool = False, folder: str = ".") -> Sample:
    """Return a sample with the given columns, as if it were all rows."""
    size = len(next(iter(columns.values())))
    return Sample(columns, size, True, is_untyped, folder)

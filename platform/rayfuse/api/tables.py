"""Rows of functions that also take tables in memory."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.errors import SpecError
from rayfuse.spec.rows import is_table

if TYPE_CHECKING:
    from rayfuse.spec.job import Job
    from rayfuse.spec.rows import Urls


@contextmanager
def rows_url(data: Any, get_job: "Callable[[], Job]") -> "Iterator[Urls]":
    """Yield the URLs of rows; a table in memory is written to a temporary file for the inputs of a model's job.

    Raises SpecError for other values.
    """
    if isinstance(data, (str, Path)):
        yield str(data)
        return
    if isinstance(data, (list, tuple)) and data and all(isinstance(url, (str, Path)) for url in data):
        yield tuple(map(str, data))
        return
    if not is_table(data):
        raise SpecError(
            f"data: expected the path or URL of rows, a list of these, or a table, not {type(data).__name__}"
        )
    from rayfuse.data.tables import write_table

    with tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        yield write_table(data, folder, get_job().inputs, "data")

"""Rows of Lance and Delta Lake tables, which are folders, read as a stream.

Read with pylance and deltalake, as `ray.data.read_lance` and `ray.data.read_delta` do, but in the order of the table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rayfuse.data.files import filesystem
from rayfuse.data.formats.arrow_rows import BATCH_ROWS, iter_rows
from rayfuse.data.formats.base import Rows
from rayfuse.errors import DataError
from rayfuse.formatting import first_line

if TYPE_CHECKING:
    import pyarrow as pa

_LANCE_SUFFIX, _DELTA_LOG = ".lance", "_delta_log"
_COLUMN_MAPPING = "delta.columnMapping.mode"


def is_table(url: str) -> bool:
    """Return whether a URL names a Lance table, as `….lance`, or a Delta Lake table, a folder with `_delta_log`."""
    return _is_lance(url) or _is_delta(url)


def read_table(url: str) -> Rows:
    """Yield the rows of the newest version of a table.

    Raises DataError if the table cannot be read, or the package that reads it is not installed.
    """
    with _readable(url):
        schema, batches = _open_lance(url) if _is_lance(url) else _open_delta(url)
        yield from iter_rows(url, schema, batches)


def _is_lance(url: str) -> bool:
    return url.rstrip("/").lower().endswith(_LANCE_SUFFIX)


def _is_delta(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.isdir(f"{path.rstrip('/')}/{_DELTA_LOG}"))


def _open_lance(url: str) -> "tuple[pa.Schema, Iterator[pa.RecordBatch]]":
    try:
        import lance
    except ImportError:
        raise DataError(f"{url}: Lance tables need pylance; `pip install 'rayfuse[lance]'`") from None
    table = lance.dataset(url)
    return table.schema, table.to_batches(batch_size=BATCH_ROWS)


def _open_delta(url: str) -> "tuple[pa.Schema, Iterator[pa.RecordBatch]]":
    try:
        from deltalake import DeltaTable
    except ImportError:
        raise DataError(f"{url}: Delta Lake tables need deltalake; `pip install 'rayfuse[delta]'`") from None
    delta = DeltaTable(url)
    if delta.metadata().configuration.get(_COLUMN_MAPPING, "none") != "none":
        raise DataError(  # the parquet files have other names, so that all columns would be null
            f"{url}: the table has column mapping ({_COLUMN_MAPPING}), which deltalake does not read; write it without, or "
            "export it to parquet"
        )
    table = delta.to_pyarrow_dataset()
    return table.schema, table.to_batches(batch_size=BATCH_ROWS)


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Convert errors of the packages that read tables to DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - deltalake's errors have no common public class
        raise DataError(f"{url}: cannot be read as a table: {first_line(str(error))}") from None

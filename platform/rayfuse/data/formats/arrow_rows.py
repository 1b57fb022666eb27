"""Rows of parquet and Arrow files, whose values have types."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from rayfuse.data.files import unpacked
from rayfuse.data.formats.base import CellParsers, Rows
from rayfuse.data.formats.delimited import check_header
from rayfuse.data.formats.hugging_face import label_decoders
from rayfuse.data.rows import Row
from rayfuse.errors import DataError
from rayfuse.formatting import first_line

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
"""Rows in memory at a time."""
_BUFFER_BYTES = 1 << 20
_FILE_MAGIC = b"ARROW1"


def read_parquet(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a parquet file."""
    import pyarrow.parquet as pq

    with _readable(file, content, "parquet") as seekable:
        # By default, a reader buffers all pages of a row group, which may be the entire file.
        parquet = pq.ParquetFile(seekable, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        yield from iter_rows(file, parquet.schema_arrow, parquet.iter_batches(BATCH_ROWS, use_threads=False))


def read_arrow(file: str, content: BinaryIO, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of an Arrow IPC file or stream; Feather files are IPC files."""
    import pyarrow as pa

    with _readable(file, content, "Arrow") as seekable:
        is_file = seekable.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        seekable.seek(0)
        if is_file:
            opened = pa.ipc.open_file(seekable)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            opened = pa.ipc.open_stream(seekable)
            batches = iter(opened)
        yield from iter_rows(file, opened.schema, batches)


def iter_rows(file: str, schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]") -> Iterator[Row]:
    """Yield the rows of record batches, with the names of Hugging Face's classes.

    Raises DataError if two columns have one name.
    """
    check_header(file, schema.names)
    decoders = label_decoders(schema)
    number = 0
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            for values in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                values |= {name: decode(values[name]) for name, decode in decoders.items() if name in values}
                yield Row(values, file, number)


@contextmanager
def _readable(file: str, content: BinaryIO, kind: str) -> Iterator[Any]:
    """Yield the content for random access. Raises DataError if the file is empty, incomplete or corrupt."""
    from pyarrow import ArrowException

    with ExitStack() as stack:
        content = stack.enter_context(unpacked(file, content))
        if not content.seek(0, 2):
            raise DataError(f"{file}: the file is empty")
        content.seek(0)
        try:
            yield content
        except (ArrowException, OSError, ValueError) as error:
            reason = first_line(str(error)).removesuffix(".")
            raise DataError(
                f"{file}: incomplete or corrupt {kind} file: {reason}; write or upload it again"
            ) from None

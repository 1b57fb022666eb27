"""Tables in memory, written as parquet files that a job reads like any others.

A file has the hash of its content as its name, so that the same rows are written once, and an interrupted run of a
notebook resumes.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rayfuse.data.base64_values import is_data_uri
from rayfuse.data.files import filesystem
from rayfuse.data.formats.hugging_face import label_decoders
from rayfuse.data.objects import is_instance_of, to_raw_value
from rayfuse.data.row_adapter import describe_inputs, numbers_to_texts
from rayfuse.errors import DataError, ResourceError
from rayfuse.spec.base import is_missing
from rayfuse.spec.cells import parse_json
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.rows import InMemoryRows

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1000
_FOLDER = "tables"
_log = logging.getLogger(__name__)


def store_tables(job: Job) -> Job:
    """Write the rows of a job that are in memory below its `output.storage`, and return the job with their URLs.

    A job without such rows is returned as it is. Raises DataError for a table that parquet cannot hold, ResourceError
    if the storage cannot be written.
    """
    folder = f"{job.output.storage}/{_FOLDER}"
    tables = {
        split: rows.table
        for split in ("train", "validation", "test")
        if isinstance(rows := getattr(job.data, split), InMemoryRows)
    }
    if not tables:
        return job
    urls = {split: write_table(table, folder, job.inputs, split) for split, table in tables.items()}
    return job.model_copy(update={"data": job.data.model_copy(update=urls)})


def write_table(table: Any, folder: str, inputs: Mapping[str, Input], name: str = "rows") -> str:
    """Write a table to the folder at a URL, and return the URL of its file; an existing file is not written again.

    table: see `rayfuse.spec.rows.is_table`. Rows are streamed. Relative paths of the files of `inputs` become absolute,
    as they refer to the working folder. `name` is the table's name in errors.

    Raises:
        DataError: The table has no rows, or values of several types in a column.
        ResourceError: The folder cannot be written.
    """
    import pyarrow.parquet as pq

    fs, path = filesystem(folder)
    partial = f"{path}/.partial-{secrets.token_hex(4)}"
    digest = hashlib.blake2b(digest_size=12)
    columns = _ColumnKinds.of(inputs)
    batches = _with_absolute_paths(_batches(table, name, columns), columns.paths)
    first = next(batches, None)
    if first is None or not first.num_rows:
        raise DataError(f"{name}: the {type(table).__name__} has no rows")
    try:
        fs.makedirs(path, exist_ok=True)
        with fs.open(partial, "wb") as file, pq.ParquetWriter(file, first.schema) as writer:
            for batch in _chain(first, batches):
                batch = _cast(batch, first.schema, name)
                writer.write_table(batch)
                _update(digest, batch)
        target = f"{path}/{digest.hexdigest()}.parquet"
        if fs.exists(target):
            fs.rm(partial)
        else:
            fs.mv(partial, target)
    except OSError as error:
        with suppress(Exception):
            fs.rm(partial)
        raise ResourceError(f"{folder}: rows in memory cannot be written there: {error}") from None
    _log.info("%s: rows in memory written to %s", name, target)
    return str(fs.unstrip_protocol(target)) if "://" in folder else target


def iter_rows(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in memory (see `rayfuse.spec.rows.is_table`), a part of it at a time."""
    if isinstance(table, (list, tuple)):
        yield from map(dict, table)
    elif hasattr(table, "iloc"):
        for start in range(0, len(table), _BATCH_ROWS):
            yield from table.iloc[start : start + _BATCH_ROWS].to_dict("records")
    else:
        for batch in _batches(table, "rows", _ColumnKinds.of({})):
            decoders = label_decoders(batch.schema)
            for row in batch.to_pylist():
                yield row | {name: decode(row[name]) for name, decode in decoders.items()}


@dataclass(frozen=True)
class _ColumnKinds:
    """Columns of the inputs whose values are not stored as they are."""

    paths: set[str]
    """Columns that may name files."""
    media: set[str]
    """Columns of files only: images and arrays there are stored as files."""
    json: set[str]
    """Columns of lists and mappings, which are JSON in the cells of csv files, as pandas reads them."""
    texts: set[str]
    """Columns of texts, which pandas may have read as numbers."""

    @classmethod
    def of(cls, inputs: Mapping[str, Input]) -> Self:
        described = describe_inputs(inputs).values()
        return cls(
            {column for one in described if "file" in one.formats for column in one.columns},
            {column for one in described if one.formats == ("file",) for column in one.columns},
            {column for one in described for column, kind in one.columns.items() if kind == "json"},
            {column for one in described if "text" in one.formats for column in one.columns},
        )

    def to_storable(self, column: str, value: Any) -> Any:
        """Return a value that Arrow can hold."""
        if column in self.json and isinstance(value, str):
            value = parse_json(value)
        return _to_storable(value, column in self.media)


def _chain(first: "pa.Table", rest: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    yield first
    yield from rest


def _batches(table: Any, name: str, kinds: _ColumnKinds) -> Iterator["pa.Table"]:
    """Yield the rows of a table as Arrow tables."""
    import pyarrow as pa

    if isinstance(table, (list, tuple)):
        yield _from_rows(table, name, kinds)
    elif hasattr(table, "features") and hasattr(table, "with_format"):
        yield from _from_hugging_face(table)
    elif hasattr(table, "iter_batches"):
        yield from table.iter_batches(batch_size=_BATCH_ROWS, batch_format="pyarrow")
    elif hasattr(table, "iloc"):
        yield _from_pandas(table, name, kinds)
    else:
        yield pa.table(table)


def _from_rows(rows: Iterable[Mapping[str, Any]], name: str, kinds: _ColumnKinds) -> "pa.Table":
    import pyarrow as pa

    columns = list(dict.fromkeys(column for row in rows for column in row))
    return pa.table(
        {
            column: _to_array(column, [kinds.to_storable(column, row.get(column)) for row in rows], name)
            for column in columns
        }
    )


def _from_pandas(frame: Any, name: str, kinds: _ColumnKinds) -> "pa.Table":
    import pyarrow as pa

    names = [column for column in frame.columns if not isinstance(column, str)]
    if names:
        raise DataError(
            f"{name}: column {names[0]!r} is not named by a text; rename the columns, as with df.columns = […]"
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{name}: several columns are named {twice!r}; rename all but one")
    arrays = {}
    for column in frame.columns:
        values = numbers_to_texts(frame[column]) if column in kinds.texts else frame[column]
        if values.dtype == object or column in kinds.json:
            arrays[column] = _to_array(column, [kinds.to_storable(column, one) for one in values], name)
        else:
            arrays[column] = pa.array(values, from_pandas=True)
    return pa.table(arrays)


def _to_array(column: str, values: list[Any], name: str) -> "pa.Array":
    import pyarrow as pa

    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        raise DataError(
            f"{name}: column {column!r} has values of several or unknown types ({', '.join(kinds)}): "
            f"{str(error).splitlines()[0]}; convert them to one type, as with df[{column!r}].astype(str)"
        ) from None


def _to_storable(value: Any, is_media: bool) -> Any:
    value = to_raw_value(value, is_media)
    if is_instance_of(value, "PIL", "Image"):  # in a column that no input reads
        value = to_raw_value(value, is_media=True)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_storable(item, is_media) for item in value]
    if isinstance(value, Mapping):
        return {key: _to_storable(inner, is_media) for key, inner in value.items()}
    return None if is_missing(value) else value


def _from_hugging_face(dataset: Any) -> Iterator["pa.Table"]:
    """Yield batches of a dataset of Hugging Face; images and sounds stay encoded files."""
    for column, feature in dataset.features.items():
        if hasattr(feature, "decode") and hasattr(feature, "decode_example"):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    yield from dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)


def _with_absolute_paths(batches: Iterable["pa.Table"], columns: set[str]) -> Iterator["pa.Table"]:
    import pyarrow as pa

    for batch in batches:
        for column in columns & set(batch.column_names):
            values = batch.column(column)
            if _holds_text(values.type):
                absolute = [_absolute(value) for value in values.to_pylist()]
                batch = batch.set_column(
                    batch.column_names.index(column), column, pa.array(absolute, from_pandas=True)
                )
        yield batch


def _holds_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_text(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value and "://" not in value and not is_data_uri(value):
        return str(Path(value).expanduser().absolute())
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    if isinstance(value, dict) and value.get("path") and not value.get("bytes"):
        return {**value, "path": _absolute(value["path"])}
    return value


def _cast(batch: "pa.Table", schema: "pa.Schema", name: str) -> "pa.Table":
    import pyarrow as pa

    try:
        return batch.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{name}: the batches of the dataset differ in their columns or types: {str(error).splitlines()[0]}"
        ) from None


def _update(digest: Any, batch: "pa.Table") -> None:
    """Add the values of a batch to a hash, whatever its chunks are."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_table(batch.combine_chunks())
    digest.update(sink.getvalue())

"""Files of predictions: parquet, jsonl or csv at any fsspec URL, written in parts so that an interrupted run resumes.

    out.parquet.parts/run.json                what the parts are predictions of
    out.parquet.parts/00000-000007.parquet    rows 7 × PART_ROWS … of the first data file
    out.parquet                               all rows in the order of the data, once every part exists

A part appears whole or not at all, and is never written twice.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.data.files import filesystem, normalized_url
from rayfuse.data.frames import INPUTS_USED
from rayfuse.data.prediction_columns import ERROR
from rayfuse.errors import ResourceError, SpecError
from rayfuse.spec.base import is_missing

if TYPE_CHECKING:
    import pyarrow as pa

_RUN_FILE = "run.json"
_MERGE_BATCH_ROWS = 10_000


class PredictionFile:
    """A file of predictions and the folder of its parts, which is removed once they are merged."""

    def __init__(self, url: str) -> None:
        """Prepare the file at a path or URL. Raises SpecError for another suffix than those of WRITERS."""
        self.url = url
        """Path or URL of the file."""
        suffix = "." + normalized_url(url).rsplit(".", 1)[-1]
        if suffix not in WRITERS:
            raise SpecError(
                f"{url}: unsupported type of output; end its name in one of: {', '.join(WRITERS)}"
            )
        self._write = WRITERS[suffix]
        self._fs, self._path = filesystem(url)
        self._parts = f"{self._path}.parts"

    def begin(self, run: Mapping[str, Any], resume: bool = True) -> set[str]:
        """Return the names of the parts that an interrupted run with the same description `run` has written.

        Parts of another run, or all without `resume`, are removed. Raises ResourceError if the folder cannot be
        written.
        """
        description = json.dumps(run, sort_keys=True)
        with self._write_errors():
            if resume and self._read_run() == description:
                return {Path(str(name)).stem for name in self._fs.glob(f"{self._parts}/*-*.parquet")}
            self._remove_parts()
            self._fs.makedirs(self._parts, exist_ok=True)
            self._fs.pipe_file(f"{self._parts}/{_RUN_FILE}", description.encode())
        return set()

    def write_part(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a part. Raises ResourceError if they cannot be written."""
        import pyarrow.parquet as pq

        with self._write_errors(), tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
            local = Path(folder, f"{name}.parquet")
            pq.write_table(_to_table(rows), local)
            self._upload(local, f"{self._parts}/{name}.parquet")

    def merge(self, names: Iterable[str], required: Sequence[str] = ()) -> tuple[int, int]:
        """Merge parts in the order of their names into the file, and return the numbers of rows and of errors.

        The columns `required` are written even if no row has a value. Raises ResourceError if the file cannot be
        written.
        """
        names = sorted(names)
        schema = self._merged_schema(names, required)
        counts = [0, 0]

        def tables() -> "Iterator[pa.Table]":
            for name in names:
                table = _cast(self._read_part(name), schema)
                counts[0] += table.num_rows
                counts[1] += table.num_rows - table.column(ERROR).null_count
                yield from (table[i : i + _MERGE_BATCH_ROWS] for i in range(0, len(table), _MERGE_BATCH_ROWS))

        with self._write_errors(), tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
            local = Path(folder, "merged")
            self._write(local, schema, tables())
            self._upload(local, self._path)
        self._remove_parts()
        return counts[0], counts[1]

    def _read_run(self) -> str | None:
        try:
            return str(self._fs.cat_file(f"{self._parts}/{_RUN_FILE}").decode())
        except FileNotFoundError:
            return None

    def _remove_parts(self) -> None:
        if self._fs.exists(self._parts):
            self._fs.rm(self._parts, recursive=True)

    def _read_part(self, name: str) -> "pa.Table":
        import pyarrow.parquet as pq

        with self._fs.open(f"{self._parts}/{name}.parquet", "rb") as file:
            return pq.read_table(file)

    def _merged_schema(self, names: Sequence[str], required: Sequence[str]) -> "pa.Schema":
        import pyarrow as pa
        import pyarrow.parquet as pq

        types: dict[str, list[pa.DataType]] = {}
        for name in names:
            with self._fs.open(f"{self._parts}/{name}.parquet", "rb") as file:
                for field in pq.read_schema(file):
                    types.setdefault(field.name, []).append(field.type)
        merged = {name: _common_type(kinds) for name, kinds in types.items()}
        for name, kind in merged.items():
            integers = any(map(pa.types.is_integer, types[name]))
            if pa.types.is_floating(kind) and integers and not self._is_exact(names, name, kind):
                merged[name] = pa.string()
        last = (INPUTS_USED, ERROR)
        ordered = [*(name for name in merged if name not in last), *last]
        return pa.schema(
            (name, pa.string() if pa.types.is_null(merged[name]) else merged[name])
            for name in ordered
            if name in (*required, *last) or not pa.types.is_null(merged[name])
        )

    def _is_exact(self, names: Sequence[str], column: str, kind: "pa.DataType") -> bool:
        """Return whether the integers of a column are floats without rounding, which ids of 17 digits are not."""
        import pyarrow as pa

        for name in names:
            part = self._read_part(name)
            if column in part.column_names:
                try:
                    part.column(column).cast(kind)
                except pa.ArrowInvalid:
                    return False
        return True

    def _upload(self, local: Path, target: str) -> None:
        """Copy a local file to the store, where it appears whole: on a disk by renaming, elsewhere in one request."""
        if "file" not in self._fs.protocol:
            self._fs.put_file(str(local), target)
            return
        partial = f"{target}.partial"
        self._fs.put_file(str(local), partial)
        Path(partial).replace(target)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{self.url}: cannot be written: {error}; free space, or write elsewhere"
            ) from None


def _to_table(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _to_array([row.get(name) for row in rows]) for name in names}
    kinds = {INPUTS_USED: pa.list_(pa.string()), ERROR: pa.string()}
    return pa.table({name: array.cast(kinds.get(name, array.type)) for name, array in columns.items()})


def _to_array(values: list[Any]) -> "pa.Array":
    """Return an array of values, or of their texts if they have several types."""
    import pyarrow as pa

    values = [None if is_missing(value) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array(list(map(_to_text, values)), pa.string())


def _common_type(kinds: "Sequence[pa.DataType]") -> "pa.DataType":
    """Return a type that holds the values of all types; text if there is no other."""
    import pyarrow as pa

    try:
        schemas = [pa.schema([("value", kind)]) for kind in dict.fromkeys(kinds)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except pa.ArrowException:
        return pa.string()


def _cast(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if pa.types.is_string(field.type) and not pa.types.is_string(column.type):
            column = pa.array(list(map(_to_text, column.to_pylist())), pa.string())
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


def _to_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)
    )


def _write_parquet(path: Path, schema: "pa.Schema", tables: "Iterator[pa.Table]") -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_jsonl(path: Path, schema: "pa.Schema", tables: "Iterator[pa.Table]") -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_csv(path: Path, schema: "pa.Schema", tables: "Iterator[pa.Table]") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(schema.names)
        for table in tables:
            writer.writerows(map(_to_text, row.values()) for row in table.to_pylist())


WRITERS: "dict[str, Callable[[Path, pa.Schema, Iterator[pa.Table]], None]]" = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
}
"""Writers of tables with one schema, by the suffix of the file."""

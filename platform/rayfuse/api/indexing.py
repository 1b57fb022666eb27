"""Indexes of passages: embeddings of the rows of data files, which queries find."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.embeddings import EmbeddingModel, choose_task
from rayfuse.api.models import FolderModel, Model, load_model
from rayfuse.api.prediction import PredictionResult, predict, row_files
from rayfuse.api.tables import rows_url
from rayfuse.errors import SpecError
from rayfuse.formatting import plural
from rayfuse.spec.error_messages import suggest_nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfuse.registry.search import Index
    from rayfuse.spec.rows import Urls

_BATCH_SIZE = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexResult:
    """An index that was written."""

    output: str
    """Path or URL of its folder."""
    rows: int
    """Number of passages."""
    invalid: int
    """Number of rows of the data that are no passages."""
    dim: int
    """Length of an embedding."""
    reasons: list[str]
    """The most common reasons for invalid rows."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {"output": self.output, "rows": self.rows, "invalid": self.invalid, "dim": self.dim}

    def __str__(self) -> str:
        lines = [f"{plural(self.rows, 'passage')} in {self.output}, embeddings of {self.dim} numbers"]
        if self.invalid:
            lines += [f"{plural(self.invalid, 'row')} left out:", *self.reasons]
        return "\n".join(lines)


def build_index(
    model: str | Path | Model,
    data: Any,
    output: str | Path,
    *,
    task: str | None = None,
    input: str | None = None,
    keep: Sequence[str] | None = None,
    batch_size: int = _BATCH_SIZE,
    concurrency: int | None = None,
    max_bad_rows: float = 1.0,
    resume: bool = True,
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> IndexResult:
    """Embed the rows of data files as passages, and write an index that finds them (see `load_index`).

    Rows are embedded in parts: the same call resumes an interrupted one. The index has a copy of the model, so that it
    can be searched wherever it is.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a model folder or its URL, or a model of `load_model`, with
            a `retrieval` task.
        data: Rows as for `evaluate`: a file, glob, folder or list of these, or a table in memory.
        output: Path or URL of the folder of the index; an index that is there is replaced.
        task: The retrieval task, if the model has several.
        input: Input of the task that the passages are, such as `entry`; by default the only one whose columns the data
            has.
        keep: Columns of the passages; by default all whose values are texts, numbers, booleans or dates.
        batch_size: Rows of a batch.
        concurrency: Number of Ray actors, each with the model; by default this process embeds.
        max_bad_rows: Fraction of invalid rows, which are left out, above which DataError is raised.
        resume: Whether to resume an interrupted call.
        tracking_uri: MLflow for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        verbose: Show log lines and progress, unless the application has configured logging.

    Raises:
        SpecError: The model does not exist or has no such task or input.
        DataError: The data cannot be read, or too many rows are invalid.
        ResourceError: The folder cannot be written.
    """
    loaded = model if isinstance(model, Model) else load_model(model, tracking_uri=tracking_uri)
    if not isinstance(loaded, FolderModel):
        raise SpecError("model: an endpoint publishes no model to embed queries with; name the model itself")
    url = str(output).rstrip("/")
    rows_file = f"{url}.rows.parquet"
    with rows_url(data, lambda: loaded.job) as source:
        chosen = choose_task(loaded, task)
        name = _choose_input(loaded, chosen, input, source)
        embedding = EmbeddingModel(loaded, chosen, name)
        found = predict(
            embedding,
            source,
            rows_file,
            keep=keep,
            batch_size=batch_size,
            concurrency=concurrency,
            max_bad_rows=max_bad_rows,
            resume=resume,
            verbose=verbose,
        )
    return _write(embedding, url, found)


def load_index(url: str | Path, *, device: str | None = None) -> "Index":
    """Load an index of `build_index` for searches.

    Args:
        url: Path or URL of its folder.
        device: Device of PyTorch for the model that embeds queries; by default a GPU if there is one.

    Raises:
        DataError: There is no index, or it is damaged.
    """
    from rayfuse.registry.search import Index

    return Index(str(url), device)


def _choose_input(model: FolderModel, task: str, name: str | None, source: "Urls") -> str:
    """Return the input that the passages are. Raises SpecError if that is not clear."""
    sides = _sides(model, task)
    if name is not None:
        if name not in sides:
            raise SpecError(f"input: {name}: not an input of task {task}; {suggest_nearest(name, sides)}")
        return name
    columns = _columns_of(model, source)
    given = [side for side in sides if set(model.inputs[side].columns) & columns]
    if len(given) == 1:
        return given[0]
    have = "columns of both inputs" if given else "no columns of the inputs"
    raise SpecError(f"input: the data has {have} of task {task}: {', '.join(sides)}; choose one with --input")


def _sides(model: FolderModel, task: str) -> list[str]:
    """Return the two inputs of a retrieval task."""
    config: Any = model.job.tasks[task]
    return list(config.inputs)


def _columns_of(model: FolderModel, source: "Urls") -> set[str]:
    """Return the columns of the first rows of the data."""
    from rayfuse.data.rows import Row

    return {
        name for row in row_files(model, source).first_rows() if isinstance(row, Row) for name in row.values
    }


def _write(model: EmbeddingModel, url: str, found: PredictionResult) -> IndexResult:
    """Convert the file of embeddings to an index, and remove it."""
    from rayfuse.data.files import filesystem
    from rayfuse.data.passage_index import IndexDescription, copy_model, write_index

    table = _EmbeddingTable(found.output, model.task)
    sides = _sides(model, model.task)
    identity = {key: value for key, value in model.identity.items() if key in ("name", "version", "digest")}
    description = IndexDescription(
        model=identity,
        task=model.task,
        input=model.input_name,
        query_input=next(side for side in sides if side != model.input_name),
        columns=table.columns,
        dim=table.dim,
        rows=found.rows - found.invalid,
    )
    copy_model(str(model.predictor.folder), url)
    write_index(url, description, table.schema, table.batches())
    fs, path = filesystem(found.output)
    fs.rm(path)
    _log.info("wrote %s", url)
    return IndexResult(url, description.rows, found.invalid, description.dim, found.reasons)


class _EmbeddingTable:
    """Rows of a file of predictions with embeddings, as the table of an index."""

    def __init__(self, url: str, task: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from rayfuse.data.files import filesystem
        from rayfuse.data.frames import INPUTS_USED
        from rayfuse.data.passage_index import EMBEDDING
        from rayfuse.data.prediction_columns import ERROR

        self._fs, self._path = filesystem(url)
        self._task, self._error = task, ERROR
        with self._fs.open(self._path, "rb") as file:
            schema = pq.read_schema(file)
            first = next(
                row for batch in self._read(file) for row in batch.column(task).to_pylist() if row is not None
            )
        self.dim = len(first)
        """Length of an embedding."""
        self.columns = [name for name in schema.names if name not in (task, INPUTS_USED, ERROR)]
        """Columns of the passages."""
        kept = [schema.field(name) for name in self.columns]
        self.schema = pa.schema([*kept, (EMBEDDING, pa.list_(pa.float32(), self.dim))])
        """Schema of the table."""

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the valid rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        with self._fs.open(self._path, "rb") as file:
            for batch in self._read(file):
                valid = batch.filter(pc.is_null(batch.column(self._error)))
                vectors = pa.array(valid.column(self._task).to_pylist(), self.schema.field(-1).type)
                kept = [valid.column(name) for name in self.columns]
                yield pa.RecordBatch.from_arrays([*kept, vectors], schema=self.schema)

    def _read(self, file: Any) -> "Iterator[pa.RecordBatch]":
        import pyarrow.parquet as pq

        return iter(pq.ParquetFile(file).iter_batches())

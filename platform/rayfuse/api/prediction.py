"""Batch prediction: from the rows of data files to a file of predictions, resumable."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.models import Model, load_model
from rayfuse.api.progress import RowProgress
from rayfuse.api.tables import rows_url
from rayfuse.console import show_log
from rayfuse.errors import DataError
from rayfuse.spec.cells import CellFormat

if TYPE_CHECKING:
    from rayfuse.api.scoring import ChunkScorer, ScoredPart
    from rayfuse.data.prediction_columns import PredictionColumns
    from rayfuse.data.row_chunks import RowFiles
    from rayfuse.spec.rows import Urls

_BATCH_SIZE = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionResult:
    """A file of predictions."""

    output: str
    """Path or URL of the file."""
    rows: int
    """Number of its rows, which is that of the data."""
    invalid: int
    """Number of rows with an error instead of a prediction."""
    resumed: int
    """Number of rows whose predictions an interrupted run had already written."""
    seconds: float
    """Duration."""
    reasons: list[str] = field(default_factory=list, repr=False)
    """The most common errors, as lines of text, without those of an interrupted run."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "output": self.output,
            "rows": self.rows,
            "invalid": self.invalid,
            "resumed": self.resumed,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        resumed = f", {self.resumed} of them by an earlier run" if self.resumed else ""
        new = (self.rows - self.resumed) / max(1e-9, self.seconds)
        lines = [f"{self.rows} rows in {self.output}{resumed} ({self.seconds:.1f} s, {new:.0f} rows/s)"]
        if self.invalid:
            lines += [f"{self.invalid} rows have an error instead of a prediction:", *self.reasons]
        return "\n".join(lines)


def predict(
    model: str | Path | Model,
    data: Any,
    output: str | Path,
    *,
    keep: Sequence[str] | None = None,
    scores: bool = False,
    batch_size: int = _BATCH_SIZE,
    concurrency: int | None = None,
    max_bad_rows: float = 1.0,
    resume: bool = True,
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> PredictionResult:
    """Predict all rows of data files, and write a file with a row for each, in the same order.

    Rows are read and written in parts: memory does not depend on their number, and the same call resumes an interrupted
    one. Columns: those of `keep`; TASK and TASK_score (the answer, and its probability) for every task; `inputs_used`;
    and `error`, the reason why a row has no prediction.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a model folder or its URL, the URL of an endpoint, or a
            model of `load_model`.
        data: Rows as for `evaluate`: a file, glob, folder or list of these, or a table in memory.
        output: Path or URL of the file: .parquet, .jsonl or .csv.
        keep: Columns of the data to keep; by default all whose values are texts, numbers, booleans or dates.
        scores: Also write TASK_scores, the probabilities of the classes; of more than 100, the most probable ones.
        batch_size: Rows of a batch; an endpoint forms batches itself.
        concurrency: Number of Ray actors, each with the model, on the cluster of RAY_ADDRESS or on this machine; by
            default this process predicts. For an endpoint, the number of requests at a time, by default 8.
        max_bad_rows: Fraction of rows with an error above which DataError is raised, after the file is written.
        resume: Whether to resume an interrupted call; otherwise all rows are predicted.
        tracking_uri: MLflow for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        verbose: Show log lines and progress, unless the application has configured logging.

    Raises:
        SpecError: The model does not exist, or an argument is invalid.
        DataError: The data cannot be read, or too many rows are invalid.
        UnavailableError: MLflow, a store or the endpoint does not respond; the same call resumes.
    """
    with show_log(verbose):
        loaded = model if isinstance(model, Model) else load_model(model, tracking_uri=tracking_uri)
        with rows_url(data, lambda: loaded.job) as url:
            work = _prepare(loaded, url, str(output), keep, scores)
            result = _run(work, batch_size, concurrency, resume)
    _check_invalid(result, data, max_bad_rows)
    return result


def _check_invalid(result: PredictionResult, data: Any, max_bad_rows: float) -> None:
    """Raise DataError if too many rows have an error."""
    if result.invalid == result.rows:
        raise DataError("\n".join([f"{data}: all {result.rows} rows are invalid:", *result.reasons]))
    if result.invalid > max_bad_rows * result.rows:
        raise DataError(
            f"{result.invalid} of {result.rows} rows are invalid ({result.invalid / result.rows:.1%}), above "
            f"max_bad_rows of {max_bad_rows:.1%}; {result.output} has the reasons:\n"
            + "\n".join(result.reasons)
        )


@dataclass(frozen=True)
class _Work:
    model: Model
    files: "RowFiles"
    output: str
    columns: "PredictionColumns"


def _prepare(model: Model, url: "Urls", output: str, keep: Sequence[str] | None, scores: bool) -> _Work:
    """Check the arguments against the first rows. Raises SpecError for a column that cannot be kept."""
    from rayfuse.data.prediction_columns import PredictionColumns
    from rayfuse.data.prediction_file import PredictionFile

    PredictionFile(output)  # which checks its name
    files = row_files(model, url)
    columns = PredictionColumns(tuple(model.tasks), None if keep is None else tuple(keep), scores)
    first = files.first_rows()
    model.check_rows(first)
    for name in columns.check(first):
        _log.warning("%s: this column of the data is left out, as predictions have one of this name", name)
    return _Work(model, files, output, columns)


def row_files(model: Model, url: "Urls") -> "RowFiles":
    """Return data files, with the formats of the columns that a model reads."""
    from rayfuse.data.readers import list_data_files
    from rayfuse.data.row_chunks import RowFiles

    cells = {name: kind for described in model.inputs.values() for name, kind in described.columns.items()}
    marks = next(iter(model.inputs.values())).cells
    return RowFiles(tuple(list_data_files(url)), cells, CellFormat(**marks))


def _run(work: _Work, batch_size: int, concurrency: int | None, resume: bool) -> PredictionResult:
    """Predict the rows that are not yet predicted, and merge all parts."""
    from rayfuse import __version__
    from rayfuse.api.scoring import ChunkScorer
    from rayfuse.data.invalid_rows import InvalidRows, no_valid_rows_message
    from rayfuse.data.prediction_file import PredictionFile

    started = time.monotonic()
    target = PredictionFile(work.output)
    kept = [work.columns.keep, work.columns.scores]
    run = {
        "rayfuse": __version__,
        "model": work.model.identity,
        "data": work.files.versions(),
        "columns": kept,
    }
    done = target.begin(run, resume)
    if done:
        _log.info("resuming: %d parts of an interrupted run are complete", len(done))
    scorer = ChunkScorer(work.output, work.columns, batch_size, concurrency)
    names, rows, invalid = set(done), 0, InvalidRows()
    total, progress = work.files.estimate_rows(skip=done), RowProgress()
    for part in _score(work, scorer, done):
        names.add(part.name)
        rows += part.rows
        invalid.merge(part.invalid)
        if rows == len(invalid) and not done:
            raise DataError(no_valid_rows_message(work.files.files[0], invalid))
        progress(rows, total)
    progress.close()
    count, errors = target.merge(names, work.columns.keep or ())
    seconds = time.monotonic() - started
    return PredictionResult(work.output, count, errors, count - rows, seconds, invalid.top_reasons())


def _score(work: _Work, scorer: "ChunkScorer", done: set[str]) -> "Iterator[ScoredPart]":
    if scorer.concurrency is None or work.model.is_remote:
        yield from (scorer(work.model, chunk) for chunk in work.files.read(skip=done))
        return
    from rayfuse.api.scoring import score_on_ray
    from rayfuse.training.ray_session import connect

    compute = work.model.job.compute.model_copy(update={"workers": scorer.concurrency, "cpus_per_worker": 1})
    with connect(work.model.job.model_copy(update={"compute": compute})):
        yield from score_on_ray(work.files, scorer, work.model.loader(), done)

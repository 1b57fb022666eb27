"""Dataset of one job: its rows are read, split, fitted, validated and described before training.

Rows are in a store (see rayfuse.data.store): memory does not depend on their number.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rayfuse.data.ingest import MapFn, read_splits
from rayfuse.data.invalid_rows import InvalidRows, check_invalid_fraction, no_valid_rows_message
from rayfuse.data.rows import Row
from rayfuse.data.samples import row_value
from rayfuse.data.splitting import PlaceReader, SplitSummary
from rayfuse.data.store import RowDataset, RowStore
from rayfuse.data.targets import embed_json_schemas
from rayfuse.data.validation import SplitStats, duplicate_warnings, select_valid, validate_splits
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities import build_input_fitter, build_modality
from rayfuse.modalities.base import InputFitter
from rayfuse.spec.base import is_missing
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks.base import TaskFitter


@dataclass
class Dataset:
    """Valid rows by split (`train`, `validation`, `test`), and statistics of all rows."""

    splits: dict[str, RowDataset]
    """Valid rows, by split."""
    invalid: dict[str, InvalidRows]
    """Invalid rows, by split."""
    digests: dict[str, str]
    """Hash of the inputs' contents and the targets of each split."""
    report: list[str] = field(default_factory=list)
    """Lines for the log: sizes, classes, missing inputs, duplicates, invalid rows."""


def load_dataset(job: Job, store: RowStore | None = None, map_fn: MapFn = map) -> tuple[Job, Dataset]:
    """Read, split, fit and validate the job's rows, in this process or with `map_fn`.

    Returns the fitted job and the valid rows, which are in `store`, or in a temporary store on this machine. Raises
    DataError with the most common reasons if more than `data.max_bad_rows` of all rows are invalid.
    """
    splits, invalid = read_splits(job, store, map_fn)
    job = fit(job, splits["train"])
    dataset = Dataset({}, invalid, {})
    with TemporaryDirectory(prefix="rayfuse-") as folder:
        stats = validate_splits(splits, job, Path(folder), map_fn)
        for name, found in stats.items():
            dataset.splits[name] = select_valid(splits[name], found, job)
            dataset.digests[name] = found.digest
            dataset.invalid.setdefault(name, InvalidRows()).merge(found.invalid)
        _check_invalid_rows(dataset, job.data.max_bad_rows)
        dataset.report = [*describe(dataset, job, stats), *duplicate_warnings(stats)]
    return job, dataset


def fit(job: Job, rows: Iterable[Row]) -> Job:
    """Return the job with its inputs and tasks fitted to the training rows: classes, vocabularies, means, scales.

    All of them are fitted in one pass over the rows. JSON schemas that tasks name are read, so that they are stored with
    the job. Raises DataError, with the input or task, if the rows do not suffice.
    """
    inputs, tasks = _fitters(job)
    unreadable: dict[str, str] = {}
    if inputs or tasks:
        for row in rows:
            for name, input_fitter in inputs.items():
                if not input_fitter.takes_next_row():
                    continue
                for value in _input_values(name, job.inputs[name], row, unreadable):
                    with _prefix_errors(f"inputs.{name}"):
                        input_fitter.partial_fit(value)
            for name, task_fitter in tasks.items():
                with _prefix_errors(f"tasks.{name}"):
                    task_fitter.partial_fit(row)
    fitted_inputs, fitted_tasks = dict(job.inputs), embed_json_schemas(job.tasks)
    for name, input_fitter in inputs.items():
        with _prefix_errors(f"inputs.{name}", unreadable.get(name, "")):
            fitted_inputs[name] = input_fitter.finalize()
    for name, task_fitter in tasks.items():
        with _prefix_errors(f"tasks.{name}"):
            fitted_tasks[name] = task_fitter.finalize()
    return job.model_copy(update={"inputs": fitted_inputs, "tasks": fitted_tasks})


def _fitters(job: Job) -> tuple[dict[str, InputFitter], dict[str, TaskFitter]]:
    """Build the accumulators of the inputs and tasks that learn from the training rows."""
    inputs = {name: build_input_fitter(options) for name, options in job.inputs.items()}
    tasks = {}
    for name, task in job.tasks.items():
        with _prefix_errors(f"tasks.{name}"):
            tasks[name] = task.fitter()
    return (
        {name: fitter for name, fitter in inputs.items() if fitter is not None},
        {name: fitter for name, fitter in tasks.items() if fitter is not None},
    )


@contextmanager
def _prefix_errors(path: str, cause: str = "") -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}{cause and '; '}{cause}") from None


def _input_values(
    name: str, options: Input, row: Row, unreadable: dict[str, str] | None = None
) -> Iterator[Any]:
    """Yield the values of an input in a row; none if the row is invalid, since validation reports it.

    The first reason of each input is added to `unreadable`.
    """
    try:
        value = row_value(name, options, row)
    except InvalidInputError as error:
        if unreadable is not None:
            unreadable.setdefault(name, f"{row.origin}: {error}")
        return
    is_list = options.max_items > 1 and isinstance(value, (list, tuple))
    yield from (item for item in (value if is_list else [value]) if not is_missing(item))


def _check_invalid_rows(dataset: Dataset, limit: float) -> None:
    invalid = InvalidRows()
    for of_split in dataset.invalid.values():
        invalid.merge(of_split)
    check_invalid_fraction(invalid, len(invalid) + sum(map(len, dataset.splits.values())), limit)
    for name, rows in dataset.splits.items():
        if not rows:
            raise DataError(no_valid_rows_message(name, dataset.invalid[name]))


def describe(dataset: Dataset, job: Job, stats: Mapping[str, SplitStats]) -> Iterable[str]:
    """Return the lines of `Dataset.report`, without those about duplicates; the rows are read once."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in dataset.splits.items())
    num_invalid = sum(map(len, dataset.invalid.values()))
    yield f"rows: {sizes}" + (f"; {num_invalid} skipped" if num_invalid else "")
    for rows in dataset.invalid.values():
        yield from rows.skipped_lines()
    yield from _describe_fractions(dataset, job)
    task_lines, input_lines = _summarize(dataset.splits, job)
    yield from task_lines
    yield from _missing_value_report(dataset, job, stats)
    yield from input_lines


def _describe_fractions(dataset: Dataset, job: Job) -> Iterable[str]:
    """Return the groups, classes or times of each split that is cut by them."""
    reader = PlaceReader.of(job)
    if not reader.option:
        return []
    summary = SplitSummary(reader)
    for name in ("train", *job.data.fractions):
        for row in dataset.splits[name]:
            summary.add(name, row)
    return summary.lines()


def _summarize(splits: Mapping[str, Iterable[Row]], job: Job) -> tuple[list[str], list[str]]:
    """Return the lines about the targets of the training rows, and those about the inputs of all splits."""
    tasks = [summary for name, task in job.tasks.items() if (summary := task.summary(name))]
    lines: dict[str, list[str]] = {name: [] for name in job.inputs}
    for split, rows in splits.items():
        inputs = {
            name: summary
            for name, options in job.inputs.items()
            if (summary := build_modality(options).summary())
        }
        tasks_of_split = tasks if split == "train" else []
        for row in rows if inputs or tasks_of_split else ():
            for task_summary in tasks_of_split:
                task_summary.update(row)
            for name, input_summary in inputs.items():
                if not input_summary.takes_next_row():
                    continue
                for value in _input_values(name, job.inputs[name], row):
                    input_summary.update(value)
        for name, summary in inputs.items():
            lines[name] += [f"{name}, {split}: {line}" for line in summary.lines()]
    task_lines = [line for summary in tasks for line in summary.lines()]
    return task_lines, [line for of_input in lines.values() for line in of_input]


def _missing_value_report(dataset: Dataset, job: Job, stats: Mapping[str, SplitStats]) -> Iterable[str]:
    for split, rows in dataset.splits.items():
        for name, options in job.inputs.items():
            missing = stats[split].missing_counts[name]
            if missing:
                yield f"missing: {name} in {missing} of {len(rows)} {split} rows ({missing / len(rows):.1%})"
            if missing == len(rows) and split == "train":
                columns = ", ".join(f"`{column}`" for column in options.source_columns)
                yield f"WARNING missing: no train row has {name}; is inputs.{name}.{options.column_key} {columns} right?"

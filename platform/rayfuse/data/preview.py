"""Check of the first rows of data before anything long, with the readers and the rules of the full pass.

It rejects only what the full pass would reject: later rows may bring what a sample lacks, such as a second class.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from rayfuse.data.dataset import fit
from rayfuse.data.files import data_suffix
from rayfuse.data.formats.sql import is_database
from rayfuse.data.ingest import (
    check_columns,
    check_split_columns,
    column_kinds,
    format_urls,
    make_splitter,
    read_typed_rows,
    split_urls,
)
from rayfuse.data.invalid_rows import InvalidRows, no_valid_rows_message
from rayfuse.data.readers import list_data_files
from rayfuse.data.row_chunks import CHUNK_BYTES, RowFiles, size_of_values
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import Preprocessor
from rayfuse.data.splitting import PlaceReader, Splitter
from rayfuse.errors import DataError, InsufficientRowsError, InvalidInputError
from rayfuse.spec.base import is_missing
from rayfuse.spec.family import CustomConfig
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.rows import Urls
from rayfuse.spec.tasks import TaskConfig

MAX_ROWS = 1000
"""Rows that are read of each split."""
_MAX_FILES = 4
_MIN_DECODED_ROWS = 8
_MIN_INVALID_ROWS = 64
"""Rows that are decoded, however long that takes, while all of them are invalid: fewer could be the few that may be."""
_DECODE_SECONDS = 0.5
_MIN_INVALID = 0.5
"""Fraction of invalid rows up to which a sample is not rejected, whatever `data.max_bad_rows` is."""
_SPARSE = (".jsonl", ".ndjson", ".json", ".tar")
"""Formats whose rows may have different columns."""


@dataclass
class _Sample:
    """First rows of the files of a split."""

    split: str
    urls: str
    files: list[str]
    rows: list[Row | InvalidRow] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    is_complete: bool = True
    """True if these are all rows of the split."""
    has_all_columns: bool = True
    """True if later rows have no other columns."""

    @property
    def valid_lines(self) -> list[Row]:
        return [row for row in self.rows if isinstance(row, Row)]


def check_first_rows(job: Job, urls: Mapping[str, Urls] | None = None) -> None:
    """Check the first rows of each split of a job, or of `urls` with a fitted job, in about a second.

    Files over HTTP and databases on servers are not sampled, as that would cost as much as reading all of their rows.

    Raises:
        DataError: The full pass would stop: a file or column does not exist, labels have unusable types, or most of the
            first rows are invalid and all rows are too few to make up for that.
        UnavailableError: A store does not respond.
    """
    samples = [_read(split, url, job) for split, url in (urls or split_urls(job)).items()]
    for sample in samples:
        if sample.has_all_columns:
            _check_columns(sample, job)
    deadline = time.monotonic() + _DECODE_SECONDS
    known_tasks = job.tasks if urls else _tasks_of_all_rows(samples[0], job)
    for sample in samples:
        if sample.rows:
            tasks = known_tasks if known_tasks is not None else _fit_tasks(sample, job)
            inputs = job.inputs if urls else _fit_custom_inputs(sample, job)
            if inputs is not None:
                _check_rows(sample, samples, job, Preprocessor(inputs, tasks), deadline)


def _read(split: str, urls: Urls, job: Job) -> _Sample:
    """Read the first rows of some of the files."""
    files = list_data_files(urls)
    sample = _Sample(split, format_urls(urls), files)
    chosen = [file for file in files[:: -(-len(files) // _MAX_FILES)] if _is_cheap_to_sample(file)]
    for file in chosen:
        is_whole = _read_file(sample, file, MAX_ROWS // len(chosen), job)
        sample.is_complete &= is_whole
        sample.has_all_columns &= is_whole or (is_database(file) or data_suffix(file) not in _SPARSE)
    if len(chosen) < len(files):
        sample.is_complete = sample.has_all_columns = False
    return sample


def _is_cheap_to_sample(file: str) -> bool:
    if is_database(file):
        return file.startswith("sqlite")
    return not file.startswith(("http://", "https://"))


def _read_file(sample: _Sample, file: str, limit: int, job: Job) -> bool:
    """Add the first rows of a file to a sample; return whether these are all."""
    size = 0
    with closing(_iterate(file, job)) as rows:
        for row in islice(rows, limit):
            sample.rows.append(row)
            if isinstance(row, Row):
                sample.columns.update(row.values)
                size += size_of_values(row.values)
            if size > CHUNK_BYTES:
                return False
        return next(rows, None) is None


def _iterate(file: str, job: Job) -> Generator[Row | InvalidRow, None, None]:
    yield from read_typed_rows(file, column_kinds(job), job.data, copy=False)


def _check_columns(sample: _Sample, job: Job) -> None:
    """Raise DataError if the sample has no row, or lacks a column."""
    if not sample.columns:
        lines = [row for row in sample.rows if isinstance(row, InvalidRow)]
        raise DataError(no_valid_rows_message(sample.urls, InvalidRows(lines)))
    if sample.split == "train" and job.data.fractions:
        check_split_columns(sample.urls, PlaceReader.of(job), sample.columns)
    check_columns(sample.urls, job, sample.columns)


def _tasks_of_all_rows(train: _Sample, job: Job) -> dict[str, TaskConfig] | None:
    """Return the tasks, fitted as the full pass does, if the sample has all training rows; else None."""
    if not train.is_complete:
        return None
    return fit(job.model_copy(update={"inputs": {}}), _training_rows(train, job)).tasks


def _training_rows(train: _Sample, job: Job) -> list[Row]:
    """Return the rows of a sample without those of the splits that are held out from them, as far as these are known."""
    depends_on_all_rows = bool(PlaceReader.of(job).option or job.data.fold)
    if depends_on_all_rows and not train.is_complete:
        return train.valid_lines
    splitter = make_splitter(split_urls(job)["train"], job, map)
    if splitter is None:
        return train.valid_lines
    return [row for row in train.valid_lines if _split_of(row, splitter) == "train"]


def _split_of(row: Row, splitter: Splitter) -> str:
    try:
        return splitter.split_of(row)
    except InvalidInputError:
        return ""


def _fit_tasks(sample: _Sample, job: Job) -> dict[str, TaskConfig]:
    """Return the tasks, fitted to a sample, without those that it does not suffice for.

    Raises DataError for targets of training rows that no other rows could make usable.
    """
    tasks: dict[str, TaskConfig] = {}
    rows = _training_rows(sample, job) if sample.split == "train" else sample.valid_lines
    for name, task in job.tasks.items():
        try:
            tasks[name] = task.fit(rows)
        except InsufficientRowsError:
            if all(is_missing(row.values.get(task.target_column or "")) for row in rows):
                tasks[name] = task
        except DataError as error:
            if sample.split == "train":
                _check_columns(sample, job)  # its error would be the cause of this one
                raise DataError(f"tasks.{name}: {error}") from None
    return tasks


def _fit_custom_inputs(sample: _Sample, job: Job) -> dict[str, Input] | None:
    """Return the inputs, of which custom ones are fitted to a sample; None if it does not suffice.

    Built-in inputs decode without that.
    """
    custom = {name: options for name, options in job.inputs.items() if isinstance(options, CustomConfig)}
    try:
        fitted = fit(job.model_copy(update={"inputs": custom, "tasks": {}}), sample.valid_lines).inputs
    except DataError:
        return None
    return {**job.inputs, **fitted}


def _check_rows(
    sample: _Sample, samples: list[_Sample], job: Job, preprocessor: Preprocessor, deadline: float
) -> None:
    """Raise DataError if the full pass would stop because of the invalid rows of a sample."""
    checked, invalid = _find_invalid(sample, job, preprocessor, deadline)
    if len(invalid) == checked == len(sample.rows) and sample.is_complete:
        raise DataError(no_valid_rows_message(sample.urls, invalid))
    share = len(invalid) / max(1, checked)
    if share <= max(_MIN_INVALID, job.data.max_bad_rows):
        return
    total = _estimate_rows(samples)
    if total is not None and len(invalid) <= job.data.max_bad_rows * total:
        return
    _check_columns(sample, job)
    first = "" if checked == len(sample.rows) and sample.is_complete else "the first "
    raise DataError(
        f"{sample.urls}: {len(invalid)} of {first}{checked} rows are invalid ({share:.1%}), above data.max_bad_rows of "
        f"{job.data.max_bad_rows:.1%}; correct them or raise it:\n" + "\n".join(invalid.top_reasons())
    )


def _find_invalid(
    sample: _Sample, job: Job, preprocessor: Preprocessor, deadline: float
) -> tuple[int, InvalidRows]:
    """Return the number of rows that were checked before the deadline, and the invalid ones among them."""
    invalid = InvalidRows()
    read_place = PlaceReader.of(job) if sample.split == "train" and job.data.fractions else None
    for number, row in enumerate(sample.rows):
        enough = _MIN_INVALID_ROWS if number == len(invalid) else _MIN_DECODED_ROWS
        if number >= enough and time.monotonic() > deadline:
            return number, invalid
        if isinstance(row, InvalidRow):
            invalid.add(row)
            continue
        try:
            if read_place is not None and read_place.option:
                read_place(row)
            preprocessor.fingerprint(row)
        except InvalidInputError as error:
            invalid.add(InvalidRow(row.origin, str(error)))
    return len(sample.rows), invalid


def _estimate_rows(samples: list[_Sample]) -> int | None:
    """Return about the number of all rows; None if it is not known without reading them."""
    counts = [
        len(sample.rows) if sample.is_complete else RowFiles(tuple(sample.files), {}).estimate_rows()
        for sample in samples
    ]
    return None if None in counts else sum(count for count in counts if count is not None)

"""The rows of one job: read, split, checked, and described before anything is trained on them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rayfuse.data.readers import Cell, json_or_text, number_or_text, read_rows, whole_or_text
from rayfuse.data.rows import BadRow, Row, is_missing
from rayfuse.data.samples import SampleMaker, row_value
from rayfuse.data.splits import split_rows
from rayfuse.errors import BadInput, DataError
from rayfuse.modalities import MODALITIES, build_modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import FractionSplit, Job
from rayfuse.spec.problems import nearest
from rayfuse.spec.tasks import Cell as CellKind
from rayfuse.spec.tasks import Task

Checked = list[bytes | BadRow]
Checker = Callable[[Mapping[str, list[Row]], Job], Mapping[str, Checked]]
"""Checks the rows of every split; a driver with a cluster spreads the work over it."""

_CELLS: dict[CellKind, Cell] = {
    "whole": whole_or_text,
    "number": number_or_text,
    "json": json_or_text,
    "text": str,
}
"""What a csv file's cells are read as."""

_REASONS_SHOWN = 10
_ROWS_SHOWN = 3
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s:]*[\d/.\\][^\s:]*")
"""What differs between reasons of one kind: quoted values, numbers, file names."""


@dataclass
class Dataset:
    """Usable rows by split (`train`, `validation`, `test`), and what was found out about them."""

    splits: dict[str, list[Row]]
    bad: dict[str, list[BadRow]]
    digests: dict[str, str]
    """Hash of what a model learns from each split: the inputs' contents and the targets."""
    findings: list[str] = field(default_factory=list)
    """Lines for people: sizes, classes, missing inputs, duplicates, bad rows."""


def read_splits(job: Job) -> tuple[dict[str, list[Row]], dict[str, list[BadRow]]]:
    """Read the job's rows by split. Raises DataError for unusable files and missing columns."""
    splits: dict[str, list[Row]] = {}
    bad: dict[str, list[BadRow]] = {}
    splits["train"], bad["train"] = read_job_rows(job.data.train, job)
    if isinstance(job.data.validation, FractionSplit):
        splits = _split(splits["train"], job.data.validation.fraction, job.data.train)
    else:
        splits["validation"], bad["validation"] = read_job_rows(job.data.validation, job)
    if job.data.test is not None:
        splits["test"], bad["test"] = read_job_rows(job.data.test, job)
    return splits, bad


def _split(rows: list[Row], fraction: float, url: str) -> dict[str, list[Row]]:
    train, validation = split_rows(rows, fraction)
    splits = {"train": train, "validation": validation}
    for name, part in splits.items():
        if not part:
            raise DataError(
                f"{url}: data.validation.fraction {fraction:g} of {len(rows)} rows leaves none for {name}; "
                "give more rows, another fraction, or a file of validation rows"
            )
    return splits


def read_job_rows(url: str, job: Job) -> tuple[list[Row], list[BadRow]]:
    """Read `url` and check that its rows have the columns that the job needs."""
    kinds = [*(i.columns_read for i in job.inputs.values()), *(t.columns for t in job.tasks.values())]
    cells = {column: _CELLS[kind] for columns in kinds for column, kind in columns.items()}
    rows, bad = read_rows(url, cells)
    if not rows:
        raise DataError(_unusable(url, bad))
    columns = sorted({column for row in rows for column in row.values})
    needed = [*_needed_by_inputs(job, set(columns))]
    needed += [(f"tasks.{name}.column", column) for name, t in job.tasks.items() for column in t.columns]
    for path, column in needed:
        if column not in columns:
            raise DataError(
                f"{url}: no column `{column}` ({path}); {nearest(column, columns)}\n"
                f"  its columns: {', '.join(columns)}"
            )
    return rows, bad


def _needed_by_inputs(job: Job, columns: set[str]) -> Iterator[tuple[str, str]]:
    """Where a job names a column that its rows must have, and the column.

    An optional input may have none of its columns; where it has some, the others are misspelt.
    """
    for name, options in job.inputs.items():
        if not options.optional or not columns.isdisjoint(options.columns_read):
            yield from ((f"inputs.{name}.{options.columns_from}", column) for column in options.columns_read)


def fit(job: Job, rows: list[Row]) -> Job:
    """The job with what its inputs and tasks learn from the training rows filled in: classes, means, scales.

    Raises DataError, naming the input or task, where the rows teach nothing.
    """
    inputs = {name: _fit_input(name, options, rows) for name, options in job.inputs.items()}
    tasks = {name: _fit_task(name, task, rows) for name, task in job.tasks.items()}
    return job.model_copy(update={"inputs": inputs, "tasks": tasks})


def _fit_input(name: str, options: Input, rows: list[Row]) -> Input:
    try:
        fitted: Input = MODALITIES[options.type].fitted(options, _readable(name, options, rows))
    except DataError as error:
        raise DataError(f"inputs.{name}: {error}") from None
    return fitted


def _fit_task(name: str, task: Task, rows: list[Row]) -> Task:
    try:
        return task.fitted(rows)
    except DataError as error:
        raise DataError(f"tasks.{name}: {error}") from None


def _readable(name: str, options: Input, rows: list[Row]) -> Iterator[Any]:
    """The values of an input that are there; rows that cannot be read are found again when all are checked."""
    for row in rows:
        with suppress(BadInput):
            value = row_value(name, options, row)
            several = options.max_items > 1 and isinstance(value, (list, tuple))
            yield from (item for item in (value if several else [value]) if not is_missing(item))


def check_here(splits: Mapping[str, list[Row]], job: Job) -> dict[str, Checked]:
    """Check every row in this process."""
    return {name: check_rows(rows, job) for name, rows in splits.items()}


def check_rows(rows: Iterable[Row], job: Job) -> Checked:
    """For each row a hash of its content, or why it cannot be used."""
    maker = SampleMaker(job.inputs, job.tasks)
    checked: Checked = []
    for row in rows:
        try:
            checked.append(maker.check(row))
        except BadInput as error:
            checked.append(BadRow(row.origin, str(error)))
    return checked


def load_dataset(job: Job, checker: Checker = check_here) -> tuple[Job, Dataset]:
    """Read, split, fit and check the job's rows.

    Returns the fitted job and the usable rows. Raises DataError where more than
    `data.max_bad_rows` of all rows are unusable, with the first of each kind of reason.
    """
    splits, bad = read_splits(job)
    job = fit(job, splits["train"])
    checked = checker(splits, job)
    dataset = Dataset({}, bad, {})
    contents: dict[str, list[bytes]] = {}
    for name, rows in splits.items():
        results = list(zip(rows, checked[name], strict=True))
        contents[name] = [result for _, result in results if isinstance(result, bytes)]
        dataset.splits[name] = [row for row, result in results if isinstance(result, bytes)]
        dataset.digests[name] = _digest(contents[name])
        dataset.bad.setdefault(name, []).extend(result for _, result in results if isinstance(result, BadRow))
    _refuse_unusable(dataset, job.data.max_bad_rows)
    dataset.findings = [*describe(dataset, job), *_duplicates(contents)]
    return job, dataset


def _digest(digests: Iterable[bytes]) -> str:
    """Hash of a set of rows, whatever their order."""
    whole = hashlib.blake2b(digest_size=16)
    for digest in sorted(digests):
        whole.update(digest)
    return whole.hexdigest()


def refuse_too_many_bad(bad: list[BadRow], total: int, limit: float) -> None:
    """Raise DataError where more than the share `limit` of all rows is unusable, with the worst offenders."""
    if bad and len(bad) / total > limit:
        raise DataError(
            f"{len(bad)} of {total} rows cannot be used ({len(bad) / total:.1%}; data.max_bad_rows allows {limit:.1%}):\n"
            + "\n".join(worst_offenders(bad))
        )


def _refuse_unusable(dataset: Dataset, limit: float) -> None:
    bad = [row for rows in dataset.bad.values() for row in rows]
    refuse_too_many_bad(bad, len(bad) + sum(map(len, dataset.splits.values())), limit)
    for name, rows in dataset.splits.items():
        if not rows:
            raise DataError(_unusable(name, dataset.bad[name]))


def _unusable(what: str, bad: list[BadRow]) -> str:
    return "\n".join([f"{what}: none of its {len(bad)} rows can be used:", *worst_offenders(bad)])


def worst_offenders(bad: list[BadRow]) -> list[str]:
    """The commonest kinds of reasons, each with its first rows and how many more there are."""
    kinds: dict[str, list[BadRow]] = {}
    for row in bad:
        kinds.setdefault(_VARIABLE.sub("…", row.reason), []).append(row)
    common = sorted(kinds.values(), key=len, reverse=True)
    lines = [line for rows in common[:_REASONS_SHOWN] for line in _offenders(rows)]
    others = common[_REASONS_SHOWN:]
    if others:
        lines.append(f"  … and {sum(map(len, others))} more rows for {len(others)} other reasons")
    return lines


def _offenders(rows: list[BadRow]) -> Iterable[str]:
    yield from (f"  {row}" for row in rows[:_ROWS_SHOWN])
    if len(rows) > _ROWS_SHOWN:
        yield f"  … and {len(rows) - _ROWS_SHOWN} more like these"


def describe(dataset: Dataset, job: Job) -> Iterable[str]:
    """What people should know of their rows before they train on them."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in dataset.splits.items())
    bad = sum(map(len, dataset.bad.values()))
    yield f"rows: {sizes}" + (f"; {bad} skipped" if bad else "")
    yield from (f"skipped: {row}" for rows in dataset.bad.values() for row in rows)
    for name, task in job.tasks.items():
        yield from task.describe(name, dataset.splits["train"])
    yield from _missing(dataset, job)
    for name, options in job.inputs.items():
        modality = build_modality(options)
        for split, rows in dataset.splits.items():
            found = modality.findings(_readable(name, options, rows))
            yield from (f"{name}, {split}: {line}" for line in found)


def _missing(dataset: Dataset, job: Job) -> Iterable[str]:
    for split, rows in dataset.splits.items():
        for name, options in job.inputs.items():
            missing = sum(is_missing(options.read(row.values)) for row in rows)
            if missing:
                yield f"missing: {name} in {missing} of {len(rows)} {split} rows ({missing / len(rows):.1%})"
            if missing == len(rows) and split == "train":
                columns = ", ".join(f"`{column}`" for column in options.columns_read)
                yield f"WARNING missing: no train row has {name}; is inputs.{name}.{options.columns_from} {columns} right?"


def _duplicates(contents: Mapping[str, list[bytes]]) -> Iterable[str]:
    """Rows from which a model learns the same, whatever their files are called."""
    seen = {name: Counter(digests) for name, digests in contents.items()}
    for name, digests in seen.items():
        repeated = sum(n - 1 for n in digests.values())
        if repeated:
            yield f"duplicates: {repeated} rows of {name} repeat another of its rows"
    for first, second in combinations(seen, 2):
        shared = sum(n for digest, n in seen[second].items() if digest in seen[first])
        if shared:
            yield f"WARNING duplicates: {shared} rows of {second} are in {first} too; its metrics flatter the model"

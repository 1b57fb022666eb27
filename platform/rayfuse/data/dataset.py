"""The rows of one job: read, split, checked, and described before anything is trained on them.

Rows go to a store and stay there (see rayfuse.data.store): memory does not depend on how many there are.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rayfuse.data.bad import BadRows, none_usable, refuse_too_many_bad
from rayfuse.data.checking import Checked, check_splits, duplicates, usable_rows
from rayfuse.data.reading import Spread, read_splits
from rayfuse.data.rows import is_missing
from rayfuse.data.samples import row_value
from rayfuse.data.store import Rows, Store
from rayfuse.errors import BadInput, DataError
from rayfuse.modalities import MODALITIES, build_modality
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Task


@dataclass
class Dataset:
    """Usable rows by split (`train`, `validation`, `test`), and what was found out about them."""

    splits: dict[str, Rows]
    bad: dict[str, BadRows]
    digests: dict[str, str]
    """Hash of what a model learns from each split: the inputs' contents and the targets."""
    findings: list[str] = field(default_factory=list)
    """Lines for people: sizes, classes, missing inputs, duplicates, bad rows."""


def load_dataset(job: Job, store: Store | None = None, spread: Spread = map) -> tuple[Job, Dataset]:
    """Read, split, fit and check the job's rows, in this process unless `spread` says otherwise.

    Returns the fitted job and the usable rows, which are in `store`, or in a temporary one of this machine. Raises
    DataError where more than `data.max_bad_rows` of all rows are unusable, with the first of each kind of reason.
    """
    splits, bad = read_splits(job, store, spread)
    job = fit(job, splits["train"])
    dataset = Dataset({}, bad, {})
    with TemporaryDirectory(prefix="rayfuse-") as scratch:
        checked = check_splits(splits, job, Path(scratch), spread)
        for name, found in checked.items():
            dataset.splits[name] = usable_rows(splits[name], found)
            dataset.digests[name] = found.digest
            dataset.bad.setdefault(name, BadRows()).merge(found.bad)
        _refuse_unusable(dataset, job.data.max_bad_rows)
        dataset.findings = [*describe(dataset, job, checked), *duplicates(checked)]
    return job, dataset


def fit(job: Job, rows: Rows) -> Job:
    """The job with what its inputs and tasks learn from the training rows filled in: classes, means, scales.

    Raises DataError, naming the input or task, where the rows teach nothing.
    """
    inputs = {name: _fit_input(name, options, rows) for name, options in job.inputs.items()}
    tasks = {name: _fit_task(name, task, rows) for name, task in job.tasks.items()}
    return job.model_copy(update={"inputs": inputs, "tasks": tasks})


def _fit_input(name: str, options: Input, rows: Rows) -> Input:
    try:
        fitted: Input = MODALITIES[options.type].fitted(options, _Readable(name, options, rows))
    except DataError as error:
        raise DataError(f"inputs.{name}: {error}") from None
    return fitted


def _fit_task(name: str, task: Task, rows: Rows) -> Task:
    try:
        return task.fitted(rows)
    except DataError as error:
        raise DataError(f"tasks.{name}: {error}") from None


class _Readable:
    """The values of an input that are there, as often as one asks; rows that cannot be read are found again when all
    are checked."""

    def __init__(self, name: str, options: Input, rows: Rows) -> None:
        self._name, self._options, self._rows = name, options, rows

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            with suppress(BadInput):
                value = row_value(self._name, self._options, row)
                several = self._options.max_items > 1 and isinstance(value, (list, tuple))
                yield from (item for item in (value if several else [value]) if not is_missing(item))


def _refuse_unusable(dataset: Dataset, limit: float) -> None:
    bad = BadRows()
    for found in dataset.bad.values():
        bad.merge(found)
    refuse_too_many_bad(bad, len(bad) + sum(map(len, dataset.splits.values())), limit)
    for name, rows in dataset.splits.items():
        if not rows:
            raise DataError(none_usable(name, dataset.bad[name]))


def describe(dataset: Dataset, job: Job, checked: Mapping[str, Checked]) -> Iterable[str]:
    """What people should know of their rows before they train on them."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in dataset.splits.items())
    bad = sum(map(len, dataset.bad.values()))
    yield f"rows: {sizes}" + (f"; {bad} skipped" if bad else "")
    for rows in dataset.bad.values():
        yield from rows.skipped()
    for name, task in job.tasks.items():
        yield from task.describe(name, dataset.splits["train"])
    yield from _missing(dataset, job, checked)
    for name, options in job.inputs.items():
        modality = build_modality(options)
        for split, usable in dataset.splits.items():
            found = modality.findings(_Readable(name, options, usable))
            yield from (f"{name}, {split}: {line}" for line in found)


def _missing(dataset: Dataset, job: Job, checked: Mapping[str, Checked]) -> Iterable[str]:
    for split, rows in dataset.splits.items():
        for name, options in job.inputs.items():
            missing = checked[split].missing[name]
            if missing:
                yield f"missing: {name} in {missing} of {len(rows)} {split} rows ({missing / len(rows):.1%})"
            if missing == len(rows) and split == "train":
                columns = ", ".join(f"`{column}`" for column in options.columns_read)
                yield f"WARNING missing: no train row has {name}; is inputs.{name}.{options.columns_from} {columns} right?"

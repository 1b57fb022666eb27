"""Draft of a job for data as it is."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from rayfuse.errors import DataError, SpecError
from rayfuse.schema_inference.cell_format import find_cell_format
from rayfuse.schema_inference.choice import Choice, choose_columns
from rayfuse.schema_inference.column import Column, is_blank, normalized_name
from rayfuse.schema_inference.commented_yaml import Path as KeyPath
from rayfuse.schema_inference.inputs import Inputs, build_inputs
from rayfuse.schema_inference.job_draft import DataFacts, JobDraft
from rayfuse.schema_inference.kinds import infer_column
from rayfuse.schema_inference.naming import choose_job_name
from rayfuse.schema_inference.sample import Sample, read_head, read_sample
from rayfuse.schema_inference.splits import DataSplits, find_splits
from rayfuse.schema_inference.tasks import Task, infer_task
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.job import Job

_FEW_ROWS = 5_000
_VERY_FEW_ROWS = 500
_VALIDATION_FRACTIONS = (0.2, 0.1)
"""Fractions of validation rows for very few and for more rows."""
_TEST_FRACTIONS = (0.2, 0.1)
"""Fractions of test rows for few and for many rows."""
_TOLERANCE = 0.02
"""Added to the share of rows without a target for `data.max_bad_rows`."""
_PAIR_KINDS = ("image", "audio", "video", "text", "timeseries", "item_sequence", "tabular")
"""Kinds of inputs that a target is compared with, the first that exists."""


def draft_job(
    data: Any,
    targets: Sequence[str],
    *,
    tasks: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    name: str | None = None,
    for_preset: bool = False,
) -> JobDraft:
    """Return a job that predicts the targets from the other columns; the arguments are those of `rayfuse.init`.

    for_preset: leave out encoders and sizes, which a preset chooses. Raises SpecError if a file cannot be read, a column
    does not exist, or there is nothing to predict or no input.
    """
    splits, sample = _read(data)
    _check_columns(sample, targets, tasks or {}, exclude)
    splits, heads = _usable_splits(splits, targets)
    found = _infer_tasks(sample, heads, targets, tasks or {})
    columns = _infer_columns(sample, heads, found.values())
    choice = choose_columns(columns, sample, targets, exclude)
    tagged = {task.words_column for task in found.values() if task.words_column}
    inputs = build_inputs(choice.inputs, sample, found, tagged, for_preset)
    job = Job(
        kind="job",
        name=name or choose_job_name(splits.train, targets),
        data=_data_block(splits, sample, list(found.values())),
        inputs=inputs.content,
        tasks={key: _task_block(key, task, inputs, sample) for key, task in found.items()},
    )
    return JobDraft(
        job,
        DataFacts(sample.num_rows, sample.is_complete, columns, found),
        sample.description,
        choice.left_out,
        [*splits.notes, *choice.warnings],
        _comments(job, inputs, found),
        _hints(job, columns, choice, splits),
    )


def _read(data: Any) -> tuple[DataSplits, Sample]:
    try:
        splits = find_splits(data)
        return splits, find_cell_format(read_sample(splits.train))
    except DataError as error:
        raise SpecError(str(error)) from None


def _check_columns(
    sample: Sample, targets: Sequence[str], tasks: Mapping[str, str], exclude: Sequence[str]
) -> None:
    known = [column for column in sample.columns if column]
    if not targets:
        raise SpecError(f"no target given; pass --target COLUMN, one of: {', '.join(known)}")
    twice = next((target for target in targets if list(targets).count(target) > 1), None)
    if twice:
        raise SpecError(f"target `{twice}` is given twice; remove one")
    for what, columns in (("target", targets), ("excluded column", exclude)):
        for column in columns:
            if column not in sample.columns:
                raise SpecError(f"{what} `{column}`: no such column; {suggest_nearest(column, known)}")
    for column in tasks:
        if column not in targets:
            raise SpecError(f"task of `{column}`: not a target; {suggest_nearest(column, list(targets))}")
    both = set(targets) & set(exclude)
    if both:
        raise SpecError(f"`{min(both)}` is a target and excluded; leave one of them out")


def _usable_splits(splits: DataSplits, targets: Sequence[str]) -> tuple[DataSplits, list[Sample]]:
    """Return the splits whose rows have the targets, and their first rows."""
    usable: dict[str, Any] = {}
    heads, notes = [], list(splits.notes)
    for split in ("validation", "test"):
        rows = getattr(splits, split)
        if rows is None:
            continue
        head = read_head(rows)
        absent = [
            target for target in targets if all(is_blank(value) for value in head.columns.get(target, [None]))
        ]
        if absent:
            notes.append(f"{split}: the rows of {rows} have no `{absent[0]}`, so they are not used")
            continue
        usable[split] = rows
        heads.append(head)
    return DataSplits(splits.train, **usable, notes=notes), heads


def _infer_tasks(
    sample: Sample, heads: Sequence[Sample], targets: Sequence[str], overrides: Mapping[str, str]
) -> dict[str, Task]:
    """Return the task of each target, by its name."""
    tasks = [
        infer_task(target, sample, overrides.get(target), [head.columns[target] for head in heads])
        for target in targets
    ]
    return {_task_name(task): task for task in tasks}


def _infer_columns(sample: Sample, heads: Sequence[Sample], tasks: Iterable[Task]) -> dict[str, Column]:
    """Return the kinds of all columns but targets; that of a retrieval task is an input as well."""
    predicted = {task.column for task in tasks if task.type != "retrieval"}
    return {
        name: _with_missing_of(heads, infer_column(name, sample))
        for name in sample.columns
        if name not in predicted
    }


def _with_missing_of(heads: Sequence[Sample], column: Column) -> Column:
    """Return a column as missing if rows of another split lack it."""
    shares = [
        sum(map(is_blank, head.columns[column.name])) / head.size if column.name in head.columns else 1.0
        for head in heads
    ]
    return dataclasses.replace(column, missing=max([column.missing, *shares]))


def _task_name(task: Task) -> str:
    target = f"{task.column}_{task.type}" if task.type == "retrieval" else task.column
    if target.isidentifier() and target.isascii():
        return target
    name = normalized_name(target).encode("ascii", "ignore").decode() or "target"
    return f"_{name}" if name[0].isdigit() else name


def _data_block(splits: DataSplits, sample: Sample, tasks: Sequence[Task]) -> dict[str, Any]:
    block: dict[str, Any] = {"train": splits.train, **sample.cells.marks()}
    validation = _VALIDATION_FRACTIONS[sample.num_rows >= _VERY_FEW_ROWS]
    test = _TEST_FRACTIONS[sample.num_rows > _FEW_ROWS]
    block["validation"] = splits.validation if splits.validation is not None else {"fraction": validation}
    block["test"] = splits.test if splits.test is not None else {"fraction": test}
    by_class = next((task for task in tasks if task.by_class), None)
    if by_class and (splits.validation is None or splits.test is None):
        block["stratify"] = True if len(tasks) == 1 else by_class.column
    missing = max(max(task.missing, task.unknown) for task in tasks)
    if missing:
        block["max_bad_rows"] = min(math.ceil(100 * (missing + _TOLERANCE)) / 100, 1.0)
    return block


def _task_block(name: str, task: Task, inputs: Inputs, sample: Sample) -> dict[str, Any]:
    block: dict[str, Any] = {"type": task.type}
    if task.words_column is not None:
        block["input"] = inputs.name_of[task.words_column]
    if task.is_pair:
        return block | _pair_options(task, inputs, sample)
    return block | ({} if name == task.column else {"column": task.column}) | dict(task.options)


def _pair_options(task: Task, inputs: Inputs, sample: Sample) -> dict[str, Any]:
    """Return the two inputs of a task that compares them. Raises SpecError if there are not two."""
    own = inputs.name_of.get(task.column)
    others = [name for name in inputs.content if name != own]
    others.sort(key=lambda name: _PAIR_KINDS.index(inputs.content[name]["type"]))
    pair = [*others[:1], own] if task.type == "retrieval" else others[:2]
    if None in pair or len(pair) < 2:
        raise SpecError(
            f"target `{task.column}`: a {task.type} task compares two inputs, and there are not two of images, audio or texts; "
            f"if its values are classes, use --task {task.column}=classification"
        )
    if task.type == "matching":
        return {"inputs": pair, "column": task.column}
    values = [value for value in sample.columns[task.column] if not is_blank(value)]
    repeats = len(set(map(str, values))) < len(values)
    return {"inputs": pair} | ({"column": task.column} if repeats else {})


def _comments(job: Job, inputs: Inputs, tasks: Mapping[str, Task]) -> dict[KeyPath, str]:
    comments: dict[KeyPath, str] = {("inputs", *path): text for path, text in inputs.comments.items()}
    comments |= {("tasks", name): task.note for name, task in tasks.items()}
    if job.data.stratify:
        comments["data", "stratify"] = "the splits have about the same share of each class"
    if "max_bad_rows" in job.data.model_fields_set:
        comments["data", "max_bad_rows"] = (
            "above the share of rows without a target, or with one that no training row may have"
        )
    return comments


def _hints(
    job: Job, columns: Mapping[str, Column], choice: Choice, splits: DataSplits
) -> dict[KeyPath, list[str]]:
    """Return options that may be wanted, and the columns that are left out."""
    hints = []
    if job.data.fractions:
        groups = [column.name for column in columns.values() if column.is_group and column.name]
        times = [column.name for column in columns.values() if column.is_iso_time]
        hints += [f"{_entry('group', name)}  # no {name} in two splits" for name in groups[:1]]
        hints += [
            f"{_entry('time', name)}  # test on the newest rows, instead of stratify" for name in times[:1]
        ]
    left_out = [f"  {name or repr(name)}: {reason}" for name, reason in choice.left_out.items()]
    return {
        ("data",): [*(f"NOTE: {note}" for note in splits.notes), *hints],
        ("inputs",): ["left out:", *left_out] if left_out else [],
    }


def _entry(key: str, value: str) -> str:
    return yaml.safe_dump({key: value}, allow_unicode=True, width=1000).strip()

"""First pass over a job's rows: from files of any format to a row store, by split."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rayfuse.data.invalid_rows import InvalidRows, no_valid_rows_message
from rayfuse.data.readers import CELL_PARSERS, list_data_files, read_rows
from rayfuse.data.rows import InvalidRow
from rayfuse.data.store import RowDataset, RowShard, RowStore, ShardWriter
from rayfuse.errors import DataError
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.job import FractionSplit, Job
from rayfuse.spec.tasks import CellType

WorkItem = dict[str, Any]
"""An item of work, or its result: integers, texts and bytes by name. `index` identifies the item."""
MapFn = Callable[[Callable[[WorkItem], WorkItem], Sequence[WorkItem]], Iterable[WorkItem]]
"""Map over items of work, here (`map`) or on a cluster (`ray_tasks.map_on_ray`); results come in any order."""


def read_splits(
    job: Job, store: RowStore | None = None, map_fn: MapFn = map
) -> tuple[dict[str, RowDataset], dict[str, InvalidRows]]:
    """Read the job's rows into a store, by split. Raises DataError for invalid files and missing columns."""
    validation = job.data.validation
    fraction = validation.fraction if isinstance(validation, FractionSplit) else None
    return _read(split_urls(job), job, store or RowStore.temporary(), map_fn, fraction)


def split_urls(job: Job) -> dict[str, str]:
    """Return the URL of each split that has files; rows in memory must be stored before (see rayfuse.data.tables)."""
    urls = {"train": job.data.train, "validation": job.data.validation, "test": job.data.test}
    return {split: url for split, url in urls.items() if isinstance(url, str)}


def read_job_rows(url: str, job: Job) -> tuple[RowDataset, InvalidRows]:
    """Read the rows at a URL for a job, into a temporary store. Raises DataError as `read_splits` does."""
    splits, invalid = _read({"rows": url}, job, RowStore.temporary(), map, None)
    return splits["rows"], invalid["rows"]


def _read(
    urls: Mapping[str, str], job: Job, store: RowStore, map_fn: MapFn, fraction: float | None
) -> tuple[dict[str, RowDataset], dict[str, InvalidRows]]:
    files = [(split, file) for split, url in urls.items() for file in list_data_files(url)]
    items: list[WorkItem] = [
        {"index": index, "split": split, "file": file} for index, (split, file) in enumerate(files)
    ]
    kinds = [*(i.source_columns for i in job.inputs.values()), *(t.columns for t in job.tasks.values())]
    cells = {column: kind for columns in kinds for column, kind in columns.items()}
    work = partial(ingest_file, store=store, column_kinds=cells, fraction=fraction)
    results = sorted(map_fn(work, items), key=lambda result: result["index"])
    splits: dict[str, RowDataset] = {}
    invalid: dict[str, InvalidRows] = {}
    for split, url in urls.items():
        found = [result for item, result in zip(items, results, strict=True) if item["split"] == split]
        names = ("train", "validation") if split == "train" and fraction else (split,)
        shards, invalid[split] = _merge_results(url, job, found)
        for name in names:
            splits[name] = RowDataset(store, shards.get(name, []), name)
            if not splits[name]:
                total = sum(shard.num_rows for of_split in shards.values() for shard in of_split)
                raise DataError(
                    f"{url}: data.validation.fraction {fraction:g} of {total} rows leaves none for {name}; "
                    "provide more rows, another fraction, or a file of validation rows"
                )
    return splits, invalid


def _merge_results(
    url: str, job: Job, results: Sequence[WorkItem]
) -> tuple[dict[str, list[RowShard]], InvalidRows]:
    """Merge the results of all files of a URL. Raises DataError without rows or without a column that is needed."""
    invalid = InvalidRows()
    shards: dict[str, list[RowShard]] = {}
    columns: set[str] = set()
    for result in results:
        invalid.merge(InvalidRows.from_json(result["invalid"]))
        columns.update(json.loads(result["columns"]))
        for split, name, file, sizes in json.loads(result["shards"]):
            shards.setdefault(split, []).append(RowShard(name, file, tuple(sizes)))
    if not shards:
        raise DataError(no_valid_rows_message(url, invalid) if len(invalid) else f"{url}: no rows")
    _check_columns(url, job, columns)
    return shards, invalid


def ingest_file(
    item: WorkItem, store: RowStore, column_kinds: Mapping[str, CellType], fraction: float | None
) -> WorkItem:
    """Read the `file` of an item into shards of its `split`; with `fraction`, hold out some training rows.

    Returns `shards`, `columns` and `invalid` as JSON.
    """
    split, file = item["split"], item["file"]
    names = ["train", "validation"] if split == "train" and fraction else [split]
    writers = {name: ShardWriter(store, f"{name}-{item['index']:06d}", file) for name in names}
    invalid = InvalidRows()
    columns: set[str] = set()
    for row in read_rows(file, {column: CELL_PARSERS[kind] for column, kind in column_kinds.items()}):
        if isinstance(row, InvalidRow):
            invalid.add(row)
            continue
        columns.update(row.values)
        held_out = fraction is not None and split == "train" and row.is_held_out(fraction)
        writers["validation" if held_out else split].write(row)
    for writer in writers.values():
        writer.close()
    shards = [
        (name, s.name, s.file, s.batch_sizes) for name, writer in writers.items() for s in writer.shards
    ]
    return {
        "index": item["index"],
        "shards": json.dumps(shards),
        "columns": json.dumps(sorted(columns)),
        "invalid": invalid.to_json(),
    }


def _check_columns(url: str, job: Job, columns: set[str]) -> None:
    """Raise DataError if a column that the job needs is missing."""
    needed = [*_columns_required_by_inputs(job, columns)]
    needed += [(f"tasks.{name}.column", column) for name, t in job.tasks.items() for column in t.columns]
    for path, column in needed:
        if column not in columns:
            raise DataError(
                f"{url}: no column `{column}` ({path}); {_column_remedy(column, sorted(columns))}"
            )


def _column_remedy(column: str, known: list[str]) -> str:
    """Suggest a column, or another separator if a csv file seems to have one."""
    for name, separator in (("semicolons", ";"), ("tabs", "\t")):
        if len(known) == 1 and column in known[0].split(separator):
            return f"the file is separated by {name}; save it with commas"
    suggestion = suggest_nearest(column, known)
    is_complete = suggestion.startswith("one of")
    return suggestion if is_complete else f"{suggestion}\n  its columns: {', '.join(known)}"


def _columns_required_by_inputs(job: Job, columns: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the key of the job that names a required column, and the column.

    The data may lack all columns of an optional input; if it has some of them, the others are misspelled.
    """
    for name, options in job.inputs.items():
        if not options.optional or not columns.isdisjoint(options.source_columns):
            yield from ((f"inputs.{name}.{options.column_key}", column) for column in options.source_columns)

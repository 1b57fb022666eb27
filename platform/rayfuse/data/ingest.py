"""First pass over a job's rows: from files of any format to a row store, by split."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

import numpy as np

from rayfuse.data.folds import plan_fold
from rayfuse.data.invalid_rows import InvalidRows, no_valid_rows_message
from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.splitting import PlaceReader, Places, Splitter, gather_places, make_plan, plan_by_rows
from rayfuse.data.store import RowDataset, RowShard, RowStore, ShardWriter
from rayfuse.data.tables import iter_rows
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.cells import CellFormat, CellType, cell_parser
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.job import Job
from rayfuse.spec.rows import InMemoryRows, Urls

WorkItem = dict[str, Any]
"""An item of work, or its result: integers, texts and bytes by name. `index` identifies the item."""
MapFn = Callable[[Callable[[WorkItem], WorkItem], Sequence[WorkItem]], Iterable[WorkItem]]
"""Map over items of work, here (`map`) or on a cluster (`ray_tasks.map_on_ray`); results come in any order."""


def read_splits(
    job: Job, store: RowStore | None = None, map_fn: MapFn = map
) -> tuple[dict[str, RowDataset], dict[str, InvalidRows]]:
    """Read the job's rows into a store, by split. Raises DataError for invalid files and missing columns."""
    urls = split_urls(job)
    store = store or RowStore.temporary(job.compute.disk_cache)
    return _read(urls, job, store, map_fn, make_splitter(urls["train"], job, map_fn))


def split_urls(job: Job) -> dict[str, Urls]:
    """Return the URLs of each split that has files; rows in memory must be stored before (see rayfuse.data.tables)."""
    data = job.data
    urls = {"train": data.train, "validation": data.validation, "test": None if data.fold else data.test}
    return {split: url for split, url in urls.items() if isinstance(url, (str, tuple))}


def iter_train_rows(job: Job) -> Iterator[Row]:
    """Yield the valid rows of the training files in order, without storing them; none of them is held out.

    Raises DataError for invalid files.
    """
    if isinstance(job.data.train, InMemoryRows):
        yield from (Row(values, "rows", n) for n, values in enumerate(iter_rows(job.data.train.table), 1))
        return
    kinds = column_kinds(job)
    for file in list_data_files(split_urls(job)["train"]):
        yield from (row for row in read_typed_rows(file, kinds, job.data) if isinstance(row, Row))


def read_job_rows(url: Urls, job: Job) -> tuple[RowDataset, InvalidRows]:
    """Read the rows of data files for a job, into a temporary store. Raises DataError as `read_splits` does."""
    splits, invalid = _read({"rows": url}, job, RowStore.temporary(job.compute.disk_cache), map, None)
    return splits["rows"], invalid["rows"]


def make_splitter(url: Urls, job: Job, map_fn: MapFn) -> Splitter | None:
    """Return the assignment of the training rows to splits; None if no split is held out from them.

    The rows are read once if the split depends on all of them. Raises DataError if they cannot be split.
    """
    fractions, reader = job.data.fractions, PlaceReader.of(job)
    if not fractions:
        return None
    if not reader.option and not job.data.fold:
        return Splitter(reader, plan_by_rows(fractions), ("train", *fractions))
    items: list[WorkItem] = [
        {"index": index, "file": file} for index, file in enumerate(list_data_files(url))
    ]
    places = Places()
    columns: set[str] = set()
    reasons: list[str] = []
    work = partial(read_places, column_kinds=column_kinds(job), cells=job.data, reader=reader)
    for result in map_fn(work, items):
        columns.update(json.loads(result["columns"]))
        reasons += [result["reason"]] if result["reason"] else []
        for stratum, positions in json.loads(result["places"]).items():
            places.add(stratum, np.frombuffer(bytes.fromhex(positions)))
    if not columns:
        return Splitter(reader, plan_by_rows(fractions), ("train", *fractions))  # the rows are reported later
    check_split_columns(url, reader, columns)
    if not places.num_rows:
        raise DataError(
            f"no row has a valid `{reader.column}` (data.{reader.option}); correct the rows, or use another column\n  "
            f"{min(reasons)}"
        )
    plan = plan_fold(reader, places, job.data) if job.data.fold else make_plan(reader, places, fractions)
    return Splitter(reader, plan, ("train", *fractions))


def check_split_columns(url: Urls, reader: PlaceReader, columns: Set[str]) -> None:
    """Raise DataError if a column by which rows are split is missing."""
    for option, column in reader.columns.items():
        if column not in columns:
            remedy = _column_remedy(column, sorted(columns))
            raise DataError(f"{format_urls(url)}: no column `{column}` (data.{option}); {remedy}")


def read_places(
    item: WorkItem, column_kinds: Mapping[str, CellType], cells: CellFormat, reader: PlaceReader
) -> WorkItem:
    """Return the `places` of the rows of an item's `file`, and their `columns`, as JSON; and why a row has no place."""
    columns: set[str] = set()

    def valid_rows() -> Iterator[Row]:
        for row in read_typed_rows(item["file"], column_kinds, cells):
            if isinstance(row, Row):
                columns.update(row.values)
                yield row

    found, reason = gather_places(valid_rows(), reader)
    places = {stratum: np.array(positions).tobytes().hex() for stratum, positions in found.items()}
    return {
        "index": item["index"],
        "reason": reason,
        "places": json.dumps(places),
        "columns": json.dumps(sorted(columns)),
    }


def format_urls(urls: Urls) -> str:
    """Return the name of data files in errors."""
    return urls if isinstance(urls, str) else ", ".join(urls)


def column_kinds(job: Job) -> dict[str, CellType]:
    """Return the columns that a job reads → how their cells are parsed in a csv file."""
    kinds = [*(i.source_columns for i in job.inputs.values()), *(t.columns for t in job.tasks.values())]
    return {column: kind for columns in kinds for column, kind in columns.items()}


def read_typed_rows(
    file: str, column_kinds: Mapping[str, CellType], cells: CellFormat, copy: bool = True
) -> Iterator[Row | InvalidRow]:
    """Yield the rows of a file; texts in columns of numbers are parsed in files of every format.

    `copy`: see `rayfuse.data.readers.read_rows`.
    """
    parsers = {column: cell_parser(kind, cells) for column, kind in column_kinds.items()}
    numbers = [column for column, kind in column_kinds.items() if kind == "float"]
    for row in read_rows(file, parsers, copy):
        if isinstance(row, Row):
            texts = [column for column in numbers if isinstance(row.values.get(column), str)]
            row.values.update({column: parsers[column](row.values[column]) for column in texts})
        yield row


def _read(
    urls: Mapping[str, Urls], job: Job, store: RowStore, map_fn: MapFn, splitter: Splitter | None
) -> tuple[dict[str, RowDataset], dict[str, InvalidRows]]:
    files = [(split, file) for split, url in urls.items() for file in list_data_files(url)]
    items: list[WorkItem] = [
        {"index": index, "split": split, "file": file} for index, (split, file) in enumerate(files)
    ]
    work = partial(
        ingest_file, store=store, column_kinds=column_kinds(job), cells=job.data, splitter=splitter
    )
    results = sorted(map_fn(work, items), key=lambda result: result["index"])
    splits: dict[str, RowDataset] = {}
    invalid: dict[str, InvalidRows] = {}
    for split, url in urls.items():
        found = [result for item, result in zip(items, results, strict=True) if item["split"] == split]
        shards, invalid[split] = _merge_results(format_urls(url), job, found)
        for name in _names(split, splitter):
            splits[name] = RowDataset(store, shards.get(name, []), name)
            if not splits[name]:
                total = sum(shard.num_rows for of_split in shards.values() for shard in of_split)
                raise DataError(_empty_split_message(format_urls(url), job, name, total))
    return splits, invalid


def _names(split: str, splitter: Splitter | None) -> Sequence[str]:
    """Return the splits that the rows of a URL are in."""
    return splitter.splits if splitter and split == "train" else (split,)


def _empty_split_message(url: str, job: Job, name: str, total: int) -> str:
    fractions = " and ".join(
        f"data.{split}.fraction {fraction:g}" for split, fraction in job.data.fractions.items()
    ).replace("data.test.fraction", "data.folds, of which each is" if job.data.fold else "data.test.fraction")
    return (
        f"{url}: {fractions} of {total} rows leaves none for {name}; "
        f"provide more rows, another fraction, or a file of {name if name != 'train' else 'validation'} rows"
    )


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
        raise DataError(no_valid_rows_message(url, invalid))
    check_columns(url, job, columns)
    return shards, invalid


def ingest_file(
    item: WorkItem,
    store: RowStore,
    column_kinds: Mapping[str, CellType],
    splitter: Splitter | None,
    cells: CellFormat,
) -> WorkItem:
    """Read the `file` of an item into shards of its `split`; `splitter` holds out some training rows.

    Returns `shards`, `columns` and `invalid` as JSON.
    """
    split, file = item["split"], item["file"]
    writers = {
        name: ShardWriter(store, f"{name}-{item['index']:06d}", file) for name in _names(split, splitter)
    }
    invalid = InvalidRows()
    columns: set[str] = set()
    for row in read_typed_rows(file, column_kinds, cells):
        if isinstance(row, InvalidRow):
            invalid.add(row)
            continue
        columns.update(row.values)
        try:
            name = splitter.split_of(row) if splitter and split == "train" else split
        except InvalidInputError as error:
            invalid.add(InvalidRow(row.origin, str(error)))
        else:
            writers[name].write(row)
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


def check_columns(url: str, job: Job, columns: Set[str]) -> None:
    """Raise DataError if a column that the job needs is missing."""
    needed = [*_columns_required_by_inputs(job, columns)]
    needed += [(f"tasks.{name}.column", column) for name, t in job.tasks.items() for column in t.columns]
    for path, column in needed:
        if column not in columns:
            raise DataError(
                f"{url}: no column `{column}` ({path}); {_column_remedy(column, sorted(columns))}"
            )


def _column_remedy(column: str, known: list[str]) -> str:
    """Suggest a column."""
    suggestion = suggest_nearest(column, known)
    is_complete = suggestion.startswith("one of")
    return suggestion if is_complete else f"{suggestion}\n  its columns: {', '.join(known)}"


def _columns_required_by_inputs(job: Job, columns: Set[str]) -> Iterator[tuple[str, str]]:
    """Yield the key of the job that names a required column, and the column.

    The data may lack all columns of an optional input; if it has some of them, the others are misspelled.
    """
    for name, options in job.inputs.items():
        if not options.optional or not columns.isdisjoint(options.source_columns):
            yield from ((f"inputs.{name}.{options.column_key}", column) for column in options.source_columns)

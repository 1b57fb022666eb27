"""The first pass over a job's rows: from its files to a store, split, with every value as it was."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rayfuse.data.bad import BadRows, none_usable
from rayfuse.data.readers import Cell, data_files, json_or_text, number_or_text, read_rows, whole_or_text
from rayfuse.data.rows import BadRow
from rayfuse.data.splits import is_held_out
from rayfuse.data.store import Rows, Shard, ShardWriter, Store
from rayfuse.errors import DataError
from rayfuse.spec.job import FractionSplit, Job
from rayfuse.spec.problems import nearest
from rayfuse.spec.tasks import Cell as CellKind

Piece = dict[str, Any]
"""A piece of work, or what came of it: whole numbers, texts and bytes by name. `number` says which piece it is."""
Spread = Callable[[Callable[[Piece], Piece], Sequence[Piece]], Iterable[Piece]]
"""Does pieces of work, here (`map`) or on a cluster (`rayfuse.data.cluster.spread`); what comes of them in any order."""

_CELLS: dict[CellKind, Cell] = {
    "whole": whole_or_text,
    "number": number_or_text,
    "json": json_or_text,
    "text": str,
}
"""What a csv file's cells are read as."""


def read_splits(
    job: Job, store: Store | None = None, spread: Spread = map
) -> tuple[dict[str, Rows], dict[str, BadRows]]:
    """Read the job's rows by split into a store. Raises DataError for unusable files and missing columns."""
    validation = job.data.validation
    fraction = validation.fraction if isinstance(validation, FractionSplit) else None
    return _read(urls_of(job), job, store or Store.temporary(), spread, fraction)


def urls_of(job: Job) -> dict[str, str]:
    """Where the rows of each split are read from."""
    urls = {"train": job.data.train, "validation": job.data.validation, "test": job.data.test}
    return {split: url for split, url in urls.items() if isinstance(url, str)}


def read_job_rows(url: str, job: Job) -> tuple[Rows, BadRows]:
    """Read the rows at `url` as a job reads them, into a store of their own."""
    splits, bad = _read({"rows": url}, job, Store.temporary(), map, None)
    return splits["rows"], bad["rows"]


def _read(
    urls: Mapping[str, str], job: Job, store: Store, spread: Spread, fraction: float | None
) -> tuple[dict[str, Rows], dict[str, BadRows]]:
    files = [(split, file) for split, url in urls.items() for file in data_files(url)]
    pieces: list[Piece] = [
        {"number": number, "split": split, "file": file} for number, (split, file) in enumerate(files)
    ]
    kinds = [*(i.columns_read for i in job.inputs.values()), *(t.columns for t in job.tasks.values())]
    cells = {column: kind for columns in kinds for column, kind in columns.items()}
    work = partial(store_file, store=store, cells=cells, fraction=fraction)
    results = sorted(spread(work, pieces), key=lambda result: result["number"])
    splits: dict[str, Rows] = {}
    bad: dict[str, BadRows] = {}
    for split, url in urls.items():
        found = [result for piece, result in zip(pieces, results, strict=True) if piece["split"] == split]
        bad[split] = BadRows()
        for result in found:
            bad[split].merge(BadRows.from_json(result["bad"]))
        shards = [shard for result in found for shard in json.loads(result["shards"])]
        _refuse(url, job, shards, bad[split], {c for result in found for c in json.loads(result["columns"])})
        for name in ("train", "validation") if split == "train" and fraction else (split,):
            mine = [Shard(shard, file, rows) for of, shard, file, rows in shards if of == name]
            splits[name] = Rows(store, mine, name)
            if not mine:
                raise DataError(
                    f"{url}: data.validation.fraction {fraction:g} of {sum(s[3] for s in shards)} rows leaves none "
                    f"for {name}; give more rows, another fraction, or a file of validation rows"
                )
    return splits, bad


def store_file(piece: Piece, store: Store, cells: Mapping[str, CellKind], fraction: float | None) -> Piece:
    """Read the `file` of a piece into shards of its `split`; with `fraction` also into some of the validation rows."""
    split, file = piece["split"], piece["file"]
    names = ["train", "validation"] if split == "train" and fraction else [split]
    writers = {name: ShardWriter(store, f"{name}-{piece['number']:06d}", file) for name in names}
    bad = BadRows()
    columns: set[str] = set()
    for row in read_rows(file, {column: _CELLS[kind] for column, kind in cells.items()}):
        if isinstance(row, BadRow):
            bad.add(row)
            continue
        columns.update(row.values)
        held_out = fraction is not None and split == "train" and is_held_out(row, fraction)
        writers["validation" if held_out else split].write(row)
    for writer in writers.values():
        writer.close()
    shards = [(name, s.name, s.file, s.rows) for name, writer in writers.items() for s in writer.shards]
    return {
        "number": piece["number"],
        "shards": json.dumps(shards),
        "columns": json.dumps(sorted(columns)),
        "bad": bad.to_json(),
    }


def _refuse(url: str, job: Job, shards: Sequence[Any], bad: BadRows, columns: set[str]) -> None:
    """Raise DataError where there is no row, or a column that the job needs is missing."""
    if not shards:
        raise DataError(none_usable(url, bad) if len(bad) else f"{url}: holds no rows")
    needed = [*_needed_by_inputs(job, columns)]
    needed += [(f"tasks.{name}.column", column) for name, t in job.tasks.items() for column in t.columns]
    for path, column in needed:
        if column not in columns:
            known = sorted(columns)
            raise DataError(
                f"{url}: no column `{column}` ({path}); {nearest(column, known)}\n"
                f"  its columns: {', '.join(known)}"
            )


def _needed_by_inputs(job: Job, columns: set[str]) -> Iterator[tuple[str, str]]:
    """Where a job names a column that its rows must have, and the column.

    An optional input may have none of its columns; where it has some, the others are misspelt.
    """
    for name, options in job.inputs.items():
        if not options.optional or not columns.isdisjoint(options.columns_read):
            yield from ((f"inputs.{name}.{options.columns_from}", column) for column in options.columns_read)

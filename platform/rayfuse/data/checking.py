"""The second pass over a job's rows: every value is opened once, and what batches need to know is noted."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from rayfuse.data.bad import BadRows
from rayfuse.data.reading import Piece, Spread
from rayfuse.data.rows import BadRow, Row, is_missing
from rayfuse.data.samples import SampleMaker
from rayfuse.data.store import Rows
from rayfuse.errors import BadInput
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Task

LENGTHS, GROUPS = "lengths", "groups"
"""Names of what is noted of each row: the steps of its inputs, and a number for the group that it belongs to."""

_FEWEST, _MOST = 500, 10_000
_PIECES = 256
"""Rows are checked in about so many pieces, of so few to so many rows."""


@dataclass
class Checked:
    """What was found out about the rows of a split."""

    usable: int = 0
    bad: BadRows = field(default_factory=BadRows)
    bad_numbers: list[np.ndarray] = field(default_factory=list)
    marks: list[np.ndarray] = field(default_factory=list)
    """uint64, for each usable row: a part of the hash of what a model learns from it."""
    lengths: list[np.ndarray] = field(default_factory=list)
    groups: list[np.ndarray] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    """How many usable rows have nothing of an input."""
    sums: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))

    @property
    def digest(self) -> str:
        """Hash of what a model learns from the rows, whatever their order: of the sum of their hashes."""
        return hashlib.blake2b(self.sums.tobytes() + str(self.usable).encode(), digest_size=16).hexdigest()


def check_splits(splits: Mapping[str, Rows], job: Job, spread: Spread = map) -> dict[str, Checked]:
    """Check every row of some splits, as they were read."""
    pieces = [piece for name, rows in splits.items() for piece in _pieces(name, len(rows))]
    pieces = [{"number": number, **piece} for number, piece in enumerate(pieces)]
    checked = {name: Checked() for name in splits}
    waiting: dict[int, Piece] = {}
    following = 0
    for result in spread(partial(check_piece, splits=dict(splits), job=job), pieces):
        waiting[result["number"]] = result
        while following in waiting:
            _add(checked[pieces[following]["split"]], pieces[following], waiting.pop(following))
            following += 1
    return checked


def _pieces(split: str, rows: int) -> Iterator[Piece]:
    size = min(_MOST, max(_FEWEST, rows // _PIECES))
    for start in range(0, rows, size):
        yield {"split": split, "start": start, "stop": min(rows, start + size)}


def _add(checked: Checked, piece: Piece, result: Piece) -> None:
    usable = np.frombuffer(result["usable"], bool)
    hashes = np.frombuffer(result["hashes"], ">u8").reshape(-1, 2).astype(np.uint64)
    checked.usable += int(usable.sum())
    checked.bad.merge(BadRows.from_json(result["bad"]))
    checked.bad_numbers.append(piece["start"] + np.flatnonzero(~usable))
    checked.marks.append(hashes[:, 0].copy())
    checked.sums = checked.sums + hashes.sum(axis=0, dtype=np.uint64)
    checked.missing.update(json.loads(result["missing"]))
    checked.lengths.append(np.frombuffer(result["lengths"], np.int32))
    checked.groups.append(np.frombuffer(result["groups"], np.uint64))


def check_piece(piece: Piece, splits: Mapping[str, Rows], job: Job) -> Piece:
    """Check the rows `start` to `stop` of a split.

    `usable`: bool, for each row; for each usable one `hashes`: 16 bytes, `lengths`: int32 where batches are made by
    length, and `groups`: uint64 where a task has groups.
    """
    maker = SampleMaker(job.inputs, job.tasks)
    column = group_column(job.tasks)
    bad = BadRows()
    usable: list[bool] = []
    hashes: list[bytes] = []
    lengths: list[int] = []
    groups: list[bytes] = []
    missing: Counter[str] = Counter()
    for row in splits[piece["split"]][piece["start"] : piece["stop"]]:
        try:
            opened = maker.check(row, measure=job.train.group_by_length)
        except BadInput as error:
            bad.add(BadRow(row.origin, str(error)))
            usable.append(False)
            continue
        usable.append(True)
        hashes.append(opened.digest)
        missing.update(name for name, i in job.inputs.items() if is_missing(i.read(row.values)))
        if job.train.group_by_length:
            lengths.append(opened.length)
        if column is not None:
            groups.append(_group(row, column))
    return {
        "number": piece["number"],
        "usable": np.array(usable, bool).tobytes(),
        "hashes": b"".join(hashes),
        "lengths": np.array(lengths, np.int32).tobytes(),
        "groups": b"".join(groups),
        "missing": json.dumps(missing),
        "bad": bad.to_json(),
    }


def group_column(tasks: Mapping[str, Task]) -> str | None:
    """The column whose equal values should meet in one batch; None where no task wants that."""
    return next((task.group_column for task in tasks.values() if task.group_column), None)


def _group(row: Row, column: str) -> bytes:
    value = str(row.values.get(column)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(value, digest_size=8).digest()


def usable_rows(rows: Rows, checked: Checked) -> Rows:
    """The rows that can be used, with the lengths and groups that were noted of them."""
    kept = rows.without(np.concatenate(checked.bad_numbers))
    for name, parts in ((LENGTHS, checked.lengths), (GROUPS, checked.groups)):
        numbers = np.concatenate(parts)
        if len(numbers) and len(numbers) == len(kept):
            kept.note(name, numbers)
    return kept


def duplicates(checked: Mapping[str, Checked]) -> Iterator[str]:
    """Rows from which a model learns the same, whatever their files are called.

    Told by 64 bits of a hash: that any two of a million rows are taken for one has a chance of 3e-8.
    """
    marks: dict[str, np.ndarray] = {}
    for name, found in checked.items():
        marks[name] = np.concatenate(found.marks)
        found.marks.clear()
        marks[name].sort()
        repeated = int((marks[name][1:] == marks[name][:-1]).sum())
        if repeated:
            yield f"duplicates: {repeated} rows of {name} repeat another of its rows"
    for first, second in combinations(marks, 2):
        shared = sum(_shared(marks[first], part) for part in np.array_split(marks[second], 64))
        if shared:
            yield f"WARNING duplicates: {shared} rows of {second} are in {first} too; its metrics flatter the model"


def _shared(known: np.ndarray, some: np.ndarray) -> int:
    """How many of some sorted numbers are among the known sorted ones."""
    if not len(known):
        return 0
    places: Any = np.minimum(np.searchsorted(known, some), len(known) - 1)
    return int((known[places] == some).sum())

"""The second pass over a job's rows: every value is opened once, and what batches need to know is noted."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
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

DTYPES: dict[str, np.dtype[Any]] = {LENGTHS: np.dtype(np.int32), GROUPS: np.dtype(np.uint64)}
_BUCKET_BITS = 6
_BUCKETS = 2**_BUCKET_BITS
_FEWEST, _MOST = 500, 10_000
_PIECES = 256
"""Rows are checked in about so many pieces, of so few to so many rows."""


@dataclass
class Checked:
    """What was found out about the rows of a split. What there is of each of them is in files of a folder.

    FOLDER/SPLIT.lengths    int32 (usable rows,)
    FOLDER/SPLIT.groups     uint64 (usable rows,)
    FOLDER/SPLIT.BUCKET     uint64: the first halves of the rows' hashes, by their first bits
    """

    split: str
    folder: Path
    usable: int = 0
    bad: BadRows = field(default_factory=BadRows)
    bad_numbers: list[np.ndarray] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    """How many usable rows have nothing of an input."""
    sums: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))

    @property
    def digest(self) -> str:
        """Hash of what a model learns from the rows, whatever their order: of the sum of their hashes."""
        return hashlib.blake2b(self.sums.tobytes() + str(self.usable).encode(), digest_size=16).hexdigest()

    def add(self, start: int, result: Piece) -> None:
        """Take in what came of checking the rows from number `start` on."""
        usable = np.frombuffer(result["usable"], bool)
        self.usable += int(usable.sum())
        self.bad.merge(BadRows.from_json(result["bad"]))
        self.bad_numbers.append(start + np.flatnonzero(~usable))
        self.missing.update(json.loads(result["missing"]))
        hashes = np.frombuffer(result["hashes"], ">u8").reshape(-1, 2).astype(np.uint64)
        self.sums = self.sums + hashes.sum(axis=0, dtype=np.uint64)
        marks = np.sort(hashes[:, 0])
        buckets = (marks >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
        borders = np.searchsorted(buckets, np.arange(_BUCKETS + 1))
        for bucket in range(_BUCKETS):
            self._append(str(bucket), marks[borders[bucket] : borders[bucket + 1]].tobytes())
        for name in DTYPES:
            self._append(name, result[name])

    def marks(self, bucket: int) -> np.ndarray:
        """The first halves of the hashes in a bucket, sorted: uint64 (any number,)."""
        path = self.file(str(bucket))
        marks = np.fromfile(path, np.uint64) if path.exists() else np.empty(0, np.uint64)
        marks.sort()
        return marks

    def file(self, name: str) -> Path:
        """A file of the folder; it is not there where it would be empty."""
        return self.folder / f"{self.split}.{name}"

    def _append(self, name: str, content: bytes) -> None:
        if content:
            with self.file(name).open("ab") as file:
                file.write(content)


def check_splits(
    splits: Mapping[str, Rows], job: Job, folder: Path, spread: Spread = map
) -> dict[str, Checked]:
    """Check every row of some splits, as they were read; an empty `folder` takes what there is of each."""
    pieces = [piece for name, rows in splits.items() for piece in _pieces(name, len(rows))]
    pieces = [{"number": number, **piece} for number, piece in enumerate(pieces)]
    checked = {name: Checked(name, folder) for name in splits}
    waiting: dict[int, Piece] = {}
    following = 0
    for result in spread(partial(check_piece, splits=dict(splits), job=job), pieces):
        waiting[result["number"]] = result
        while following in waiting:
            piece = pieces[following]
            checked[piece["split"]].add(piece["start"], waiting.pop(following))
            following += 1
    return checked


def _pieces(split: str, rows: int) -> Iterator[Piece]:
    size = min(_MOST, max(_FEWEST, rows // _PIECES))
    for start in range(0, rows, size):
        yield {"split": split, "start": start, "stop": min(rows, start + size)}


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
    for name, dtype in DTYPES.items():
        if checked.file(name).exists():
            kept.note(name, checked.file(name), dtype)
    return kept


def duplicates(checked: Mapping[str, Checked]) -> Iterator[str]:
    """Rows from which a model learns the same, whatever their files are called.

    Told by 64 bits of a hash: that any two of a million rows are taken for one has a chance of 3e-8.
    """
    repeated: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for bucket in range(_BUCKETS):
        marks = {name: found.marks(bucket) for name, found in checked.items()}
        for name, mine in marks.items():
            repeated[name] += int((mine[1:] == mine[:-1]).sum())
        for first, second in combinations(marks, 2):
            shared[first, second] += int(np.isin(marks[second], marks[first]).sum())
    for name in checked:
        if repeated[name]:
            yield f"duplicates: {repeated[name]} rows of {name} repeat another of its rows"
    for (first, second), count in shared.items():
        if count:
            yield f"WARNING duplicates: {count} rows of {second} are in {first} too; its metrics flatter the model"

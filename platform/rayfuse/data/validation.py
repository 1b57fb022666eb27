"""Second pass over a job's rows: decode every value once, and store what batches and the feature cache need."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rayfuse.data.ingest import MapFn, WorkItem
from rayfuse.data.invalid_rows import InvalidRows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import KEY_BYTES, Preprocessor, RowFingerprint, content_digest, reads_files
from rayfuse.data.store import RowDataset
from rayfuse.errors import InvalidInputError
from rayfuse.spec.feature_cache import cached_inputs
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import TaskConfig

LENGTHS, GROUPS = "lengths", "groups"
"""Columns of the store: total steps of each row's inputs, and a hash of the group that it belongs to."""

_BUCKET_BITS = 6
_BUCKETS = 2**_BUCKET_BITS
_MIN_ITEM_ROWS, _MAX_ITEM_ROWS = 500, 10_000
_TARGET_ITEMS = 256
"""Rows are validated in about this many items of work, within the limits above."""


def loss_weights_column(task: str) -> str:
    """Return the column of the store with the weight of each row in the mean loss of a task: float32 (rows,)."""
    return f"loss_weights.{task}"


def content_keys_column(name: str) -> str:
    """Return the column of the store with the content hashes of an input: S16 (rows, max_items), empty for padding."""
    return f"content_keys.{name}"


def content_digests_column(name: str) -> str:
    """Return the column of the store with a hash of the files of an input in each row: uint64 (rows,)."""
    return f"content_digests.{name}"


def column_dtypes(job: Job) -> dict[str, np.dtype[Any]]:
    """Return the columns that validation stores, with the dtype of one row's entry."""
    dtypes: dict[str, np.dtype[Any]] = {}
    if job.train.group_by_length:
        dtypes[LENGTHS] = np.dtype(np.int32)
    if group_column(job.tasks) is not None:
        dtypes[GROUPS] = np.dtype(np.uint64)
    for name in weighted_tasks(job.tasks):
        dtypes[loss_weights_column(name)] = np.dtype(np.float32)
    for name in cached_inputs(job):
        shape = (job.inputs[name].max_items,)
        dtypes[content_keys_column(name)] = np.dtype((f"S{KEY_BYTES}", shape))
    for name in file_inputs(job.inputs):
        dtypes[content_digests_column(name)] = np.dtype(np.uint64)
    return dtypes


def weighted_tasks(tasks: Mapping[str, TaskConfig]) -> list[str]:
    """Return the tasks in which rows count by their `loss_weight`."""
    return [name for name, task in tasks.items() if task.weighted_rows]


def file_inputs(inputs: Mapping[str, Input]) -> list[str]:
    """Return the inputs that read files, which may change after they were validated."""
    return [name for name, options in inputs.items() if reads_files(options)]


@dataclass
class SplitStats:
    """Statistics of the rows of a split; arrays with an entry per row are in files of a folder.

    FOLDER/SPLIT.COLUMN     the columns of `column_dtypes`
    FOLDER/SPLIT.BUCKET     uint64: first halves of the rows' hashes, by their first bits
    """

    split: str
    """Name of the split."""
    folder: Path
    """Folder of the files."""
    columns: Sequence[str] = ()
    """Columns that are stored for each row."""
    num_valid: int = 0
    """Number of valid rows."""
    invalid: InvalidRows = field(default_factory=InvalidRows)
    """Invalid rows."""
    invalid_indices: list[np.ndarray] = field(default_factory=list)
    """Stored indices of the invalid rows, in order: int64 (any number,) each."""
    missing_counts: Counter[str] = field(default_factory=Counter)
    """Valid rows without content for an input, by input."""
    hash_sums: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))
    """Sums of both halves of the rows' hashes: uint64 (2,)."""

    @property
    def digest(self) -> str:
        """Hash of the content that a model learns from, independent of the order of the rows: 32 hexadecimal digits."""
        return hashlib.blake2b(
            self.hash_sums.tobytes() + str(self.num_valid).encode(), digest_size=16
        ).hexdigest()

    def add(self, start: int, result: WorkItem) -> None:
        """Add the result of validating the rows from index `start` on; results must be added in order."""
        valid = np.frombuffer(result["valid"], bool)
        self.num_valid += int(valid.sum())
        self.invalid.merge(InvalidRows.from_json(result["invalid"]))
        self.invalid_indices.append(start + np.flatnonzero(~valid))
        self.missing_counts.update(json.loads(result["missing"]))
        hashes = np.frombuffer(result["hashes"], ">u8").reshape(-1, 2).astype(np.uint64)
        self.hash_sums = self.hash_sums + hashes.sum(axis=0, dtype=np.uint64)
        prefixes = np.sort(hashes[:, 0])
        buckets = (prefixes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
        borders = np.searchsorted(buckets, np.arange(_BUCKETS + 1))
        for bucket in range(_BUCKETS):
            self._append(str(bucket), prefixes[borders[bucket] : borders[bucket + 1]].tobytes())
        for name in self.columns:
            self._append(name, result[name])

    def hash_prefixes(self, bucket: int) -> np.ndarray:
        """Return the first halves of the hashes in a bucket, sorted: uint64 (any number,)."""
        path = self.file_path(str(bucket))
        prefixes = np.fromfile(path, np.uint64) if path.exists() else np.empty(0, np.uint64)
        prefixes.sort()
        return prefixes

    def file_path(self, name: str) -> Path:
        """Return the path of a file of the folder; an empty file does not exist."""
        return self.folder / f"{self.split}.{name}"

    def _append(self, name: str, content: bytes) -> None:
        if content:
            with self.file_path(name).open("ab") as file:
                file.write(content)


def validate_splits(
    splits: Mapping[str, RowDataset], job: Job, folder: Path, map_fn: MapFn = map
) -> dict[str, SplitStats]:
    """Validate every row of some splits, and write arrays with an entry per row to an empty folder."""
    items = [item for name, rows in splits.items() for item in _work_items(name, len(rows))]
    items = [{"index": index, **item} for index, item in enumerate(items)]
    columns = list(column_dtypes(job))
    stats = {name: SplitStats(name, folder, columns) for name in splits}
    waiting: dict[int, WorkItem] = {}
    following = 0
    for result in map_fn(partial(validate_work_item, splits=dict(splits), job=job), items):
        waiting[result["index"]] = result
        while following in waiting:
            item = items[following]
            stats[item["split"]].add(item["start"], waiting.pop(following))
            following += 1
    return stats


def _work_items(split: str, rows: int) -> Iterator[WorkItem]:
    size = min(_MAX_ITEM_ROWS, max(_MIN_ITEM_ROWS, rows // _TARGET_ITEMS))
    for start in range(0, rows, size):
        yield {"split": split, "start": start, "stop": min(rows, start + size)}


def validate_work_item(item: WorkItem, splits: Mapping[str, RowDataset], job: Job) -> WorkItem:
    """Validate the rows `start` to `stop` of a split.

    Returns `valid`: bool per row; and per valid row `hashes`, 16 bytes, and the columns of `column_dtypes`.
    """
    preprocessor = Preprocessor(job.inputs, job.tasks)
    entries_of = _column_encoder(job)
    invalid = InvalidRows()
    valid: list[bool] = []
    columns: dict[str, list[bytes]] = {name: [] for name in ("hashes", *column_dtypes(job))}
    missing: Counter[str] = Counter()
    for row in splits[item["split"]][item["start"] : item["stop"]]:
        try:
            found = preprocessor.fingerprint(row, with_length=job.train.group_by_length)
        except InvalidInputError as error:
            invalid.add(InvalidRow(row.origin, str(error)))
            valid.append(False)
            continue
        valid.append(True)
        missing.update(job.inputs.keys() - found.present_inputs)
        for name, entry in entries_of(row, found).items():
            columns[name].append(entry)
    return {
        "index": item["index"],
        "valid": np.array(valid, bool).tobytes(),
        "missing": json.dumps(missing),
        "invalid": invalid.to_json(),
        **{name: b"".join(entries) for name, entries in columns.items()},
    }


def _column_encoder(job: Job) -> Callable[[Row, RowFingerprint], dict[str, bytes]]:
    """Return a function from a valid row to the bytes of its hash and columns."""
    by_length, group = job.train.group_by_length, group_column(job.tasks)
    key_sizes = {name: job.inputs[name].max_items * KEY_BYTES for name in cached_inputs(job)}
    digested = file_inputs(job.inputs)

    def encode(row: Row, fingerprint: RowFingerprint) -> dict[str, bytes]:
        entries = {"hashes": fingerprint.digest}
        if by_length:
            entries[LENGTHS] = fingerprint.length.to_bytes(4, sys.byteorder)
        if group is not None:
            entries[GROUPS] = _group_hash(row, group)
        for name in weighted_tasks(job.tasks):
            weight = job.tasks[name].loss_weight(fingerprint.targets[name])
            entries[loss_weights_column(name)] = np.float32(weight).tobytes()
        for name, size in key_sizes.items():
            keys = b"".join(key.ljust(KEY_BYTES, b"\0") for key in fingerprint.content_keys.get(name, ()))
            entries[content_keys_column(name)] = keys.ljust(size, b"\0")
        for name in digested:
            keys_of_present = filter(None, fingerprint.content_keys.get(name, ()))
            entries[content_digests_column(name)] = content_digest(keys_of_present).to_bytes(8, sys.byteorder)
        return entries

    return encode


def group_column(tasks: Mapping[str, TaskConfig]) -> str | None:
    """Return the column whose equal values should be in one batch; None if no task has one."""
    return next((task.group_column for task in tasks.values() if task.group_column), None)


def _group_hash(row: Row, column: str) -> bytes:
    value = str(row.values.get(column)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(value, digest_size=8).digest()


def select_valid(rows: RowDataset, stats: SplitStats, job: Job) -> RowDataset:
    """Return the valid rows, with the columns that validation stored."""
    valid = rows.exclude(np.concatenate(stats.invalid_indices))
    for name, dtype in column_dtypes(job).items():
        if stats.file_path(name).exists():
            valid.set_column(name, stats.file_path(name), dtype)
    return valid


def duplicate_warnings(stats: Mapping[str, SplitStats]) -> Iterator[str]:
    """Yield a line for each split, and pair of splits, with rows of the same content.

    Rows are compared by 64 bits of a hash: among a million rows, a collision has a probability of 3e-8.
    """
    repeated: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for bucket in range(_BUCKETS):
        prefixes = {name: found.hash_prefixes(bucket) for name, found in stats.items()}
        for name, own in prefixes.items():
            repeated[name] += int((own[1:] == own[:-1]).sum())
        for first, second in combinations(prefixes, 2):
            shared[first, second] += int(np.isin(prefixes[second], prefixes[first]).sum())
    for name in stats:
        if repeated[name]:
            yield f"duplicates: {repeated[name]} rows of {name} are copies of other rows of it"
    for (first, second), count in shared.items():
        if count:
            yield f"WARNING duplicates: {count} rows of {second} are also in {first}; its metrics are too optimistic"

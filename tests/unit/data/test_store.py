"""Row store: exact values by index and in order, in any process and at any URL."""

import datetime
import gc
import math
import pickle
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from rayfuse.data import memory_map
from rayfuse.data import store as store_module
from rayfuse.data.file_locks import lock_shared, remove_orphans
from rayfuse.data.records import decode_values, encode_values
from rayfuse.data.rows import Row
from rayfuse.data.store import RowDataset, RowStore, ShardWriter
from rayfuse.errors import DataError, ResourceError

VALUES: list[Any] = [
    None, True, 0, -(2**70), 1.5, float("inf"), "", "é\ud800\0", b"", b"\x00\xff", Decimal("1.50"), [], {"a": [b"x", {"b": b"y"}]},
    datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC), datetime.time(1, 2),
    datetime.timedelta(days=-1, microseconds=3),
]  # fmt: skip


def test_values_round_trip() -> None:
    import pandas as pd

    values = {str(number): value for number, value in enumerate([*VALUES, pd.Timestamp(1, unit="ns")])}
    found = decode_values(*encode_values(values, "rows.parquet:7"))
    assert found == values
    assert list(map(type, found.values())) == list(map(type, values.values()))
    assert math.isnan(decode_values(*encode_values({"a": float("nan")}, ""))["a"])


def test_an_unsupported_type_is_rejected() -> None:
    with pytest.raises(
        DataError, match=r"rows.parquet:3: a value of type complex is not supported; write text"
    ):
        encode_values({"a": 1j}, "rows.parquet:3")


def written(store: RowStore, count: int = 25, split: str = "train") -> RowDataset:
    """Rows of two files in several shards."""
    shards = []
    for place, file in enumerate(("a.jsonl", "b.jsonl")):
        writer = ShardWriter(store, f"{split}-{place}", file)
        for number in range(place, count, 2):
            writer.write(Row({"n": number, "blob": bytes([number])}, file, number + 1))
        writer.close()
        shards += writer.shards
    return RowDataset(store, shards, split)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 100)
    monkeypatch.setattr(store_module, "_BATCH_ROWS", 2)
    monkeypatch.setattr(memory_map, "READS_PER_RELEASE", 3)
    monkeypatch.setattr(store_module, "_MAX_OPEN_SHARDS", 2)


def numbers(rows: Any) -> list[int]:
    return [row.values["n"] for row in rows]


def test_rows_that_were_removed_are_named() -> None:
    store = RowStore.temporary()
    rows = written(store)
    shutil.rmtree(store.url)
    with pytest.raises(ResourceError, match=r"train-0-00000.arrow: the stored rows do not exist any more"):
        rows[0]


@pytest.mark.usefixtures("small_shards")
def test_access_by_index_by_iteration_and_in_views() -> None:
    rows = written(RowStore.temporary())
    known = [*range(0, 25, 2), *range(1, 25, 2)]
    assert len(rows.shards) > 4
    assert len(rows) == 25
    assert numbers(rows) == [rows[place].values["n"] for place in range(25)] == known
    assert rows[13] == Row({"n": 1, "blob": b"\x01"}, "b.jsonl", 2)
    assert rows[-1].values["n"] == 23
    assert rows[np.int64(3)].origin == "a.jsonl:7"
    for part in (slice(3, 9), slice(12, 20), slice(1, None, 3), slice(None, None, -1), slice(30, 40)):
        assert numbers(rows[part]) == known[part]
        assert [row.values["n"] for row in rows[part][1:3]] == known[part][1:3]
    with pytest.raises(IndexError):
        rows[25]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("bad", [[], [0], [24], [0, 1, 2, 12, 13, 24], list(range(24))])
def test_exclude(bad: list[int]) -> None:
    rows = written(RowStore.temporary())
    kept = rows.exclude(np.array(bad, dtype=np.int64))
    known = [n for place, n in enumerate(numbers(rows)) if place not in bad]
    assert numbers(kept) == [kept[place].values["n"] for place in range(len(kept))] == known
    for start in range(len(kept)):
        assert numbers(kept[start : start + 4]) == known[start : start + 4]


@pytest.mark.parametrize("parent", ["memory://columns", "rows"])
def test_columns_follow_their_rows(parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = written(RowStore.create_in(parent if "://" in parent else str(tmp_path / parent))).exclude(
        np.array([3])
    )
    assert rows.get_column("lengths") is None
    assert rows[0]  # this machine's copy is made before the column
    np.arange(24, dtype=np.int32).tofile(tmp_path / "train.lengths")
    rows.set_column("lengths", tmp_path / "train.lengths", np.dtype(np.int32))
    there = pickle.loads(pickle.dumps(rows))
    for part in (rows, there, there[5:9], there[1::7], there[::-1]):
        lengths = part.get_column("lengths")
        assert lengths is not None
        assert [rows[int(place)] for place in lengths] == list(part)


def test_a_store_is_removed_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for parent in (None, str(tmp_path / "rows"), "memory://runs/rows"):
        store = RowStore.create_in(parent) if parent else RowStore.temporary()
        url = store.url
        rows = written(store)[2:5]
        copy = pickle.loads(pickle.dumps(rows))
        assert copy[0] == rows[0]
        del store, copy
        gc.collect()
        fs, path = fsspec.url_to_fs(url)
        assert fs.exists(path)
        del rows
        gc.collect()
        assert not fs.exists(path)


def test_a_remote_store_is_copied_to_this_machine_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = written(RowStore.create_in("memory://runs/rows"))
    first, second = (pickle.loads(pickle.dumps(rows)) for _ in range(2))
    assert numbers(first) == numbers(second)
    copy = first.store.local_path
    assert copy == second.store.local_path
    assert copy.is_relative_to(tmp_path)
    del first
    gc.collect()
    assert copy.is_dir()
    del second
    gc.collect()
    assert not copy.exists(), "no process of this machine reads it"


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    kept, left, other = (tmp_path / name for name in ("kept", "left", "other"))
    lock = lock_shared(kept)
    lock_shared(left).close()
    for folder in (kept, left, other):
        folder.mkdir()
    remove_orphans(tmp_path)
    assert kept.is_dir()
    assert other.is_dir(), "never locked, so not ours"
    assert not left.exists()
    lock.close()

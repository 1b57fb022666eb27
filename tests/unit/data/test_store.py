"""Rows on disk come back as they were, by number and one after the other, in any process and from any store."""

import datetime
import gc
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from rayfuse.data import store as store_module
from rayfuse.data.leases import clear_unused, hold
from rayfuse.data.records import decode, encode
from rayfuse.data.rows import Row
from rayfuse.data.store import Rows, ShardWriter, Store
from rayfuse.errors import DataError

VALUES: list[Any] = [
    None, True, 0, -(2**70), 1.5, float("inf"), "", "é\ud800\0", b"", b"\x00\xff", Decimal("1.50"), [], {"a": [b"x", {"b": b"y"}]},
    datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC), datetime.time(1, 2),
    datetime.timedelta(days=-1, microseconds=3),
]  # fmt: skip


def test_values_come_back_as_they_were() -> None:
    import pandas as pd

    values = {str(number): value for number, value in enumerate([*VALUES, pd.Timestamp(1, unit="ns")])}
    line, found = decode(encode(7, values, "rows.parquet:7"))
    assert line == 7
    assert found == values
    assert list(map(type, found.values())) == list(map(type, values.values()))
    assert decode(encode(1, {"a": float("nan")}, ""))[1]["a"] != 0


def test_a_value_of_a_strange_kind_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows.parquet:3: holds a complex; write it as text"):
        encode(3, {"a": 1j}, "rows.parquet:3")


def written(store: Store, count: int = 25, split: str = "train") -> Rows:
    """Rows of two files in several shards."""
    shards = []
    for place, file in enumerate(("a.jsonl", "b.jsonl")):
        writer = ShardWriter(store, f"{split}-{place}", file)
        for number in range(place, count, 2):
            writer.write(Row({"n": number, "blob": bytes([number])}, file, number + 1))
        writer.close()
        shards += writer.shards
    return Rows(store, shards, split)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 100)
    monkeypatch.setattr(store_module, "_INDEX_ENTRIES", 2)
    monkeypatch.setattr(store_module, "_MOST_OPEN", 2)


def numbers(rows: Any) -> list[int]:
    return [row.values["n"] for row in rows]


@pytest.mark.usefixtures("small_shards")
def test_by_number_one_after_the_other_and_in_views() -> None:
    rows = written(Store.temporary())
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
def test_bad_rows_are_left_out(bad: list[int]) -> None:
    rows = written(Store.temporary())
    kept = rows.without(np.array(bad, dtype=np.int64))
    known = [n for place, n in enumerate(numbers(rows)) if place not in bad]
    assert numbers(kept) == [kept[place].values["n"] for place in range(len(kept))] == known
    for start in range(len(kept)):
        assert numbers(kept[start : start + 4]) == known[start : start + 4]


@pytest.mark.parametrize("parent", ["memory://notes", "rows"])
def test_notes_follow_their_rows(parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = written(Store.below(parent if "://" in parent else str(tmp_path / parent))).without(np.array([3]))
    assert rows.noted("lengths") is None
    assert rows[0]  # this machine's copy is made before the notes
    np.arange(24, dtype=np.int32).tofile(tmp_path / "train.lengths")
    rows.note("lengths", tmp_path / "train.lengths", np.dtype(np.int32))
    there = pickle.loads(pickle.dumps(rows))
    for part in (rows, there, there[5:9], there[1::7], there[::-1]):
        lengths = part.noted("lengths")
        assert lengths is not None
        assert [rows[int(place)] for place in lengths] == list(part)


def test_a_store_lives_as_long_as_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for parent in (None, str(tmp_path / "rows"), "memory://runs/rows"):
        store = Store.below(parent) if parent else Store.temporary()
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
    rows = written(Store.below("memory://runs/rows"))
    first, second = (pickle.loads(pickle.dumps(rows)) for _ in range(2))
    assert numbers(first) == numbers(second)
    copy = first.store.here
    assert copy == second.store.here
    assert copy.is_relative_to(tmp_path)
    del first
    gc.collect()
    assert copy.is_dir()
    del second
    gc.collect()
    assert not copy.exists(), "nobody on this machine reads it any more"


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    kept, left, other = (tmp_path / name for name in ("kept", "left", "other"))
    lock = hold(kept)
    hold(left).close()
    for folder in (kept, left, other):
        folder.mkdir()
    clear_unused(tmp_path)
    assert kept.is_dir()
    assert other.is_dir(), "nobody ever held it, so it is not ours"
    assert not left.exists()
    lock.close()

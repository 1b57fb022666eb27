"""Files inside rows of parquet: references in the store, and a cache of blocks that keeps to its limit."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfuse.data.embedded_files import EmbeddedFile, detach_files
from rayfuse.data.ingest import read_job_rows
from rayfuse.data.rows import Row
from rayfuse.data.sampler import BatchSampler, Windows
from rayfuse.data.store import RowDataset
from rayfuse.errors import DataError
from rayfuse.spec.job import Job

FILE_BYTES, ROWS, GROUP_ROWS = 5000, 60, 6
GROUP_BYTES = FILE_BYTES * GROUP_ROWS


def content(number: int, place: int = 0) -> bytes:
    return random.Random(f"{number} {place}").randbytes(FILE_BYTES)


def make_row(number: int) -> dict[str, Any]:
    return {
        "image": {"bytes": content(number), "path": None},
        "views": [{"bytes": content(number, 1)}] if number % 2 else [],
        "icon": b"short",
        "label": number % 3,
    }


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    table = pa.Table.from_pylist([make_row(number) for number in range(ROWS)])
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def make_job(parquet: Path, disk_cache: int = 10**9, workers: int = 1) -> Job:
    return Job(
        name="embedded",
        data={"train": str(parquet)},
        inputs={"image": {"type": "image", "encoder": {"type": "conv"}}},
        fusion={"type": "concat"},
        tasks={"label": {"type": "classification"}},
        train={"batch_size": 4},
        compute={"disk_cache": disk_cache, "workers": workers},
        output={"storage": str(parquet.parent / "runs")},
    )


def read_whole(value: Any) -> Any:
    """Replace the references in a value by what they refer to."""
    if isinstance(value, EmbeddedFile):
        return value.read()
    if isinstance(value, dict):
        return {key: read_whole(inner) for key, inner in value.items()}
    return [read_whole(inner) for inner in value] if isinstance(value, list) else value


def used_bytes(folder: Path) -> int:
    used = 0
    for path in folder.glob("*.arrow"):
        with suppress(FileNotFoundError):  # removed by another thread
            used += path.stat().st_size
    return used


def load(parquet: Path, disk_cache: int = 10**9) -> RowDataset:
    rows, invalid = read_job_rows(str(parquet), make_job(parquet, disk_cache))
    assert not len(invalid)
    return rows


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_rows_keep_references_and_the_store_is_small(parquet: Path) -> None:
    rows = load(parquet)
    stored = sum(file.stat().st_size for file in Path(rows.store.url).iterdir())
    assert stored < parquet.stat().st_size / 10
    assert isinstance(rows[7].values["image"]["bytes"], EmbeddedFile)
    assert rows[7].values["icon"] == b"short"
    there = pickle.loads(pickle.dumps(rows))
    for found in (rows, there):
        assert [read_whole(row.values) for row in found] == [make_row(number) for number in range(ROWS)]
    whole = Row(make_row(7), rows[7].file, 8)
    assert rows[7].digest() == whole.digest()


def test_the_cache_keeps_to_its_limit_while_threads_read(parquet: Path) -> None:
    limit = 5 * GROUP_BYTES
    rows = load(parquet, limit)
    numbers = random.Random(0).sample(range(ROWS), ROWS)

    def read(number: int) -> int:
        assert rows[number].values["image"]["bytes"].read() == content(number)
        return used_bytes(rows.store.block_cache.folder)

    with ThreadPoolExecutor(4) as threads:
        used = list(threads.map(read, numbers))
    assert max(used) <= limit


def test_the_cache_is_removed_with_the_last_reader(parquet: Path) -> None:
    rows = load(parquet)
    there = pickle.loads(pickle.dumps(rows))
    folder = rows.store.block_cache.folder
    rows[0].values["image"]["bytes"].read()
    there[9].values["image"]["bytes"].read()
    del rows
    assert folder.is_dir()
    del there
    assert not folder.exists()


def test_a_row_group_above_the_limit(parquet: Path) -> None:
    rows = load(parquet, GROUP_BYTES)
    with pytest.raises(
        DataError, match=r"rows.parquet: a row group has .* above compute.disk_cache .*smaller row"
    ):
        rows[0].values["image"]["bytes"].read()


def test_a_file_that_was_removed_meanwhile(parquet: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(parquet.read_bytes())
    rows = load(copy)
    copy.unlink()
    with pytest.raises(DataError, match=r"copy.parquet: .*no such file"):
        rows[0].values["image"]["bytes"].read()


def test_detached_files_are_counted() -> None:
    row, removed = detach_files({"a": b"x" * 2000, "b": [None, b"y" * 3000], "c": "text", "d": [1, 2]})
    assert removed == 5000
    assert row == {
        "a": EmbeddedFile(("a",)),
        "b": [None, EmbeddedFile(("b", 1))],
        "c": "text",
        "d": [1, 2],
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_epoch_reads_every_row_once_window_by_window(parquet: Path, workers: int) -> None:
    """Blocks have six rows; a window holds about 4, and a lane 4 / workers of them."""
    rows = load(parquet)
    blocks = rows.blocks()
    assert blocks is not None
    assert blocks.of_rows.tolist() == [number // GROUP_ROWS for number in range(ROWS)]
    window = int(blocks.num_bytes.sum() / 2.5)
    sampler = BatchSampler(ROWS, 6, seed=3, windows=Windows(blocks, window, workers))
    orders = [
        [
            int(row)
            for step in range(sampler.steps_per_epoch)
            for row in sampler.step_indices(epoch, step, 0, 1)[0]
        ]
        for epoch in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(ROWS))
        assert len(set(blocks.of_rows[order[:18]].tolist())) <= 5, "a full shuffle has nearly all of them"
        assert order != sorted(order)
    first_steps = [
        {
            int(blocks.of_rows[row])
            for step in range(3)
            for row in sampler.step_indices(0, step, rank, workers)[0]
        }
        for rank in range(workers)
    ]
    assert sum(map(len, first_steps)) == len(set.union(*first_steps)), "no block is read by two workers"


def test_rows_that_fit_into_the_cache_are_shuffled_as_a_whole(parquet: Path) -> None:
    rows = load(parquet)
    total = int(rows.blocks().num_bytes.sum())  # type: ignore[union-attr]
    plain = BatchSampler(ROWS, 4, seed=0).step_indices(0, 0, 0, 1)[0]
    fits = BatchSampler.from_job(rows, make_job(parquet, total)).step_indices(0, 0, 0, 1)[0]
    exceeds = BatchSampler.from_job(rows, make_job(parquet, total - 1)).step_indices(0, 0, 0, 1)[0]
    assert np.array_equal(plain, fits)
    assert not np.array_equal(plain, exceeds)


def test_windows_keep_groups_together(parquet: Path) -> None:
    rows = load(parquet)
    blocks = rows.blocks()
    assert blocks is not None
    groups = np.arange(ROWS) // 3
    windows = Windows(blocks, int(blocks.num_bytes.sum() / 2.5), 1)
    sampler = BatchSampler(ROWS, 3, groups=groups, windows=windows)
    for step in range(sampler.steps_per_epoch):
        assert len(set(groups[sampler.step_indices(0, step, 0, 1)[0]])) == 1

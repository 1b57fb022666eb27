"""Which rows make which batch, how samples are stacked, and what is made ahead."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch
from reading import read_all

from rayfuse.data.ahead import prefetch
from rayfuse.data.batches import Plan, SampleStore, collate, drop_inputs
from rayfuse.data.rows import Row
from rayfuse.data.samples import Sample, SampleMaker
from rayfuse.errors import DataError


def everywhere(plan: Plan, epoch: int, step: int, world: int) -> list[int]:
    return [int(n) for rank in range(world) for part in plan.step(epoch, step, rank, world) for n in part]


@pytest.mark.parametrize("rows", [1, 7, 64, 65])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (8, 1), (8, 3), (64, 4)])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_epoch_has_every_row_once(rows: int, batch_size: int, accumulate: int, world: int) -> None:
    plan = Plan(rows, batch_size, accumulate, seed=3)
    steps = [everywhere(plan, 5, step, world) for step in range(plan.steps)]
    assert Counter(n for step in steps for n in step) == Counter(range(rows))
    assert [len(step) for step in steps] == [plan.size(step) for step in range(plan.steps)]
    for rank in range(world):
        parts = plan.step(5, 0, rank, world)
        assert len(parts) == accumulate
        assert max(map(len, parts)) <= -(-batch_size // (world * accumulate))


def test_a_global_batch_is_the_same_on_any_number_of_workers() -> None:
    plans = [Plan(100, 16, accumulate, seed=1) for accumulate in (1, 2)]
    for step in range(7):
        alone = set(everywhere(plans[0], 0, step, 1))
        for plan in plans:
            for world in (2, 3, 5):
                assert set(everywhere(plan, 0, step, world)) == alone


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return everywhere(Plan(50, 50, seed=seed), epoch, 0, 1)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0)), tuple(range(50))}) == 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {"tasks.answer.classes": ["blue", "green", "high", "low", "red", "unknown"]}
    return tiny_jobs.tiny_job(tmp_path_factory.mktemp("batches"), audio=True, **overrides)


@pytest.fixture(scope="module")
def rows(job: Any) -> list[Row]:
    return read_all(job.data.train)[0]


@pytest.fixture(scope="module")
def maker(job: Any) -> SampleMaker:
    return SampleMaker(job.inputs, job.tasks)


def text(value: str, target: int = 0) -> Sample:
    ids = np.frombuffer(value.encode(), dtype=np.uint8).astype(np.int64) + 1
    features = {"text": [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]}
    return Sample(features, {"text": [value.encode()]}, {"answer": target})


def test_equal_values_are_kept_once(maker: SampleMaker) -> None:
    batch = collate(
        [text("ab", 1), text("c", 2), text("ab", 0), Sample({}, {}, {"answer": 1})], maker.modalities
    )
    part = batch.inputs["text"]
    assert part.index.tolist() == [[0], [1], [0], [-1]]
    assert part.features is not None
    assert part.features["input_ids"].tolist() == [[98, 99], [100, 0]]
    assert part.features["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.targets["answer"].tolist() == [1, 2, 0, 1]
    assert batch.weights.tolist() == [1, 1, 1, 1]
    assert batch.inputs["image"].features is None
    assert batch.inputs["image"].index.tolist() == [[-1]] * 4


def test_values_that_only_their_keys_tell_apart_are_all_kept(maker: SampleMaker) -> None:
    """Keys come from the raw values, so that what is equal after decoding is encoded twice at worst."""
    first, second = text("ab"), Sample(text("ab").features, {"text": [b"other"]}, {"answer": 0})
    assert collate([first, second], maker.modalities).inputs["text"].index.tolist() == [[0], [1]]


def test_blanks_and_fillers_keep_ranks_in_step(maker: SampleMaker) -> None:
    empty = collate([], maker.modalities, blanks=True)
    assert empty.size == 1
    assert empty.weights.tolist() == [0]
    assert empty.targets == {}
    for part in empty.inputs.values():
        assert part.features is not None
        assert all(len(tensor) == 1 for tensor in part.features.values())
        assert part.index.tolist() == [[-1]]
    alone = collate([text("ab")], maker.modalities, blanks=True)
    assert alone.weights.tolist() == [1]
    assert alone.inputs["image"].features is not None
    assert alone.inputs["image"].index.tolist() == [[-1]]


def test_a_subset_leaves_inputs_out(rows: list[Row], maker: SampleMaker) -> None:
    batch = collate([maker.from_row(row) for row in rows[:6]], maker.modalities)
    chosen = batch.subset(["text"])
    assert chosen.inputs["text"].index.tolist() == batch.inputs["text"].index.tolist()
    assert chosen.inputs["image"].index.tolist() == [[-1]] * 6
    assert batch.inputs["image"].index.tolist() != [[-1]] * 6
    assert chosen.targets is batch.targets
    moved = batch.to(torch.device("cpu"))
    assert moved.inputs["text"].features is not None
    assert moved.size == 6


def test_samples_of_different_shapes_are_explained(maker: SampleMaker) -> None:
    def picture(side: int) -> Sample:
        pixels = np.zeros((3, side, side), dtype=np.float32)
        return Sample({"image": [{"pixel_values": pixels}]}, {"image": [bytes([side])]}, {})

    with pytest.raises(
        DataError, match=r"pixel_values: samples of different shapes \(\(3, 4, 4\), \(3, 5, 5\)\)"
    ):
        collate([picture(4), picture(5)], maker.modalities)


def test_a_store_makes_samples_once_while_they_fit(rows: list[Row], maker: SampleMaker) -> None:
    store = SampleStore(rows, maker, keep_bytes=maker.from_row(rows[0]).size)
    assert len(store) == len(rows)
    assert store[0] is store[0]
    assert store[1] is not store[1]


def test_a_file_that_vanishes_during_the_run_is_named(tmp_path: Path, maker: SampleMaker) -> None:
    row = Row({"text": "a", "label": "red", "image": "gone.png"}, str(tmp_path / "rows.jsonl"), 7)
    with pytest.raises(
        DataError, match=r"rows.jsonl:7: image: gone.png: no such file; it could be read when"
    ):
        SampleStore([row], maker)[0]


def test_dropping_inputs(rows: list[Row], maker: SampleMaker, job: Any) -> None:
    sample = next(s for s in map(maker.from_row, rows) if len(s.features) == 3)
    outcomes = Counter(
        tuple(drop_inputs(sample, job.inputs, 0.3, (0, epoch, 5)).features) for epoch in range(1000)
    )
    assert set(outcomes) == {("image", "text", "audio"), ("image", "text"), ("text", "audio"), ("text",)}
    assert outcomes["image", "text", "audio"] == pytest.approx(490, abs=60)
    assert outcomes["text",] == pytest.approx(90, abs=35)
    assert drop_inputs(sample, job.inputs, 0.0, (0,)) is sample
    again = [list(drop_inputs(sample, job.inputs, 0.5, (0, 1, n)).features) for n in range(20)]
    assert again == [list(drop_inputs(sample, job.inputs, 0.5, (0, 1, n)).features) for n in range(20)]
    assert drop_inputs(sample, job.inputs, 0.5, (0, 1, 2)).targets == sample.targets


def test_dropping_never_leaves_a_sample_without_inputs(rows: list[Row], maker: SampleMaker, job: Any) -> None:
    sample = next(s for s in map(maker.from_row, rows) if "image" in s.features)
    only = Sample({"image": sample.features["image"]}, sample.keys, sample.targets)
    inputs = {name: options.model_copy(update={"optional": True}) for name, options in job.inputs.items()}
    for n in range(50):
        assert drop_inputs(only, inputs, 0.9, (n,)).features
        assert drop_inputs(sample, inputs, 0.9, (n,)).features


def test_prefetch_keeps_order() -> None:
    assert list(prefetch(iter(range(20)), depth=3)) == list(range(20))
    assert list(prefetch(iter(()))) == []


def test_prefetch_runs_only_a_little_ahead() -> None:
    made: list[int] = []
    items = prefetch((made.append(n) or n for n in range(100)), depth=2)
    assert next(items) == 0
    wait_until(lambda: len(made) >= 4)
    time.sleep(0.05)
    assert len(made) <= 5
    items.close()  # type: ignore[attr-defined]


def test_prefetch_raises_the_producers_error_after_what_was_made() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise DataError("no more")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(DataError, match="no more"):
        next(items)
    wait_until(lambda: not prefetching())


def test_prefetch_ends_its_thread_when_the_consumer_leaves() -> None:
    items = prefetch(iter(range(1000)))
    next(items)
    assert prefetching()
    items.close()  # type: ignore[attr-defined]
    wait_until(lambda: not prefetching())


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_of_a_group_meet_in_a_batch() -> None:
    groups = tuple(n % 10 for n in range(100))
    plan = Plan(100, 20, seed=1, groups=np.array(groups))
    order = [n for step in range(5) for n in everywhere(plan, 0, step, 1)]
    assert sorted(order) == list(range(100))
    assert [len({groups[n] for n in order[i : i + 10]}) for i in range(0, 100, 10)] == [1] * 10
    for step in range(5):
        assert set(everywhere(plan, 0, step, 1)) == set(everywhere(plan, 0, step, 3))
    later = [n for step in range(5) for n in everywhere(plan, 1, step, 1)]
    assert [groups[n] for n in order[::10]] != [groups[n] for n in later[::10]]
    assert Plan(100, 20, seed=1, groups=np.array(groups[::-1])).step(0, 0, 0, 1)[0].tolist() != order[:20]

"""Batching, with plain numbers for samples."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from rayfuse.serving.batcher import Batcher, BatchResult


class Model:
    """Doubles numbers and records its batches; fails for negative ones."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds = seconds
        self.started = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        time.sleep(self.seconds)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


def run(model: Model, items: Sequence[int], size: int = 4, wait: float = 0.05) -> list[Any]:
    async def all_at_once() -> list[Any]:
        batcher = Batcher(model, size, wait)
        try:
            return await asyncio.gather(*(batcher.submit(item) for item in items), return_exceptions=True)
        finally:
            await batcher.close()

    return asyncio.run(all_at_once())


def test_each_item_gets_its_result() -> None:
    model = Model()
    assert [found.result for found in run(model, range(10))] == [2 * item for item in range(10)]
    assert [len(batch) for batch in model.batches] == [4, 4, 2]


def test_a_full_batch_does_not_wait() -> None:
    started = time.monotonic()
    run(Model(), range(4), wait=5)
    assert time.monotonic() - started < 2


def test_a_failing_item_does_not_affect_others() -> None:
    model = Model()
    first, failed, last = run(model, [1, -1, 3])
    assert (first.result, last.result) == (2, 6)
    assert isinstance(failed, ValueError)
    assert model.batches == [[1, -1, 3], [1], [-1], [3]]


def test_while_the_model_is_busy_the_next_batch_grows() -> None:
    """Ray's serve.batch would close several small ones."""
    model = Model(seconds=0.2)

    async def trickle() -> list[BatchResult[int]]:
        batcher = Batcher(model, 8, 0.001)
        first = asyncio.create_task(batcher.submit(0))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        others = []
        for item in range(1, 6):
            others.append(asyncio.create_task(batcher.submit(item)))
            await asyncio.sleep(0.01)
        found = await asyncio.gather(first, *others)
        await batcher.close()
        return list(found)

    found = asyncio.run(trickle())
    assert model.batches == [[0], [1, 2, 3, 4, 5]]
    assert found[-1].batch_size == 5
    assert found[1].queue_seconds > found[-1].queue_seconds > 0.05
    assert found[1].compute_seconds == pytest.approx(0.2, abs=0.1)


def test_cancelled_items_are_not_computed() -> None:
    model = Model(seconds=0.1)

    async def leave() -> None:
        batcher = Batcher(model, 1, 0.0)
        first = asyncio.create_task(batcher.submit(1))
        gone = asyncio.create_task(batcher.submit(2))
        last = asyncio.create_task(batcher.submit(3))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.gather(first, last)
        await batcher.close()

    asyncio.run(leave())
    assert model.batches == [[1], [3]]


def test_failures_in_a_row_are_counted_until_one_succeeds() -> None:
    async def fail_twice() -> list[int]:
        batcher = Batcher(Model(), 1, 0.0)
        seen = []
        for item in (-1, -1, 1):
            await asyncio.gather(batcher.submit(item), return_exceptions=True)
            seen.append(batcher.consecutive_failures)
        await batcher.close()
        return seen

    assert asyncio.run(fail_twice()) == [1, 2, 0]


def test_a_wrong_number_of_results_is_an_error() -> None:
    async def lose() -> Any:
        batcher = Batcher(lambda items: [], 1, 0.0)
        try:
            return await asyncio.gather(batcher.submit(1), return_exceptions=True)
        finally:
            await batcher.close()

    [error] = asyncio.run(lose())
    assert "returned 0 results for 1 items" in str(error)

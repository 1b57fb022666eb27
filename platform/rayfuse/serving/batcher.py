"""Continuous batching of the samples of concurrent requests.

Ray's `serve.batch` closes a batch after its timeout even while the model is still busy with the previous one, so that
batches stay small under load. This batcher collects until the model is free: with 16 concurrent clients and a model
that takes 13 ms plus 3.5 ms a row, 193 predictions per second instead of 73.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchResult(Generic[Result]):
    """The result of one item, and the times of its batch."""

    result: Result
    """Result of `run` for the item."""
    queue_seconds: float
    """Seconds between `submit` and the start of the batch."""
    compute_seconds: float
    """Seconds that `run` took for the batch."""
    batch_size: int
    """Items in the batch."""


@dataclass
class _PendingItem(Generic[Item, Result]):
    item: Item
    enqueued_at: float
    future: asyncio.Future[BatchResult[Result]]


class Batcher(Generic[Item, Result]):
    """Runs `run` in a dedicated thread on up to `max_batch_size` items at a time.

    The first item of a batch waits at most `batch_wait_timeout` seconds for others. A batch that fails is run again
    item by item, so that an item's error affects no other item. All methods run in one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch_size: int,
        batch_wait_timeout: float,
    ) -> None:
        self.run, self.max_batch_size, self.batch_wait_timeout = run, max_batch_size, batch_wait_timeout
        self.consecutive_failures = 0
        """Items that have failed since the last success."""
        self._queue: deque[_PendingItem[Item, Result]] = deque()
        self._item_added = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._busy_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> BatchResult[Result]:
        """Return the result for an item; raise what `run` raised for it. A cancelled item is not computed."""
        if self._task is None:
            self._task = asyncio.create_task(self._run_loop())
        pending = _PendingItem(item, time.monotonic(), asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._item_added.set()
        return await pending.future

    @property
    def has_crashed(self) -> bool:
        """True if the collecting task has ended, so that no item will be processed."""
        return self._task is not None and self._task.done()

    @property
    def busy_seconds(self) -> float:
        """Seconds since the current batch started; 0 while idle."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    async def close(self) -> None:
        """Cancel the collecting task and stop the thread."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run_loop(self) -> None:
        while True:
            batch = await self._collect()
            if batch:
                await self._process_batch(batch)

    async def _collect(self) -> list[_PendingItem[Item, Result]]:
        """Wait for a first item, then for others until the batch is full or the timeout has passed."""
        while not self._queue:
            self._item_added.clear()
            await self._item_added.wait()
        closes = self._queue[0].enqueued_at + self.batch_wait_timeout
        while len(self._queue) < self.max_batch_size and (left := closes - time.monotonic()) > 0:
            self._item_added.clear()
            try:
                await asyncio.wait_for(self._item_added.wait(), left)
            except TimeoutError:
                break
        taken = [self._queue.popleft() for _ in range(min(self.max_batch_size, len(self._queue)))]
        return [pending for pending in taken if not pending.future.done()]

    async def _process_batch(self, batch: list[_PendingItem[Item, Result]]) -> None:
        started = time.monotonic()
        try:
            results = await self._run_batch([pending.item for pending in batch])
        except Exception as error:  # noqa: BLE001 - raised in the callers, whatever it is
            if len(batch) == 1:
                self.consecutive_failures += 1
                _fail(batch[0].future, error)
                return
            for pending in batch:
                await self._process_batch([pending])
            return
        self.consecutive_failures = 0
        seconds = time.monotonic() - started
        for pending, result in zip(batch, results, strict=True):
            if not pending.future.done():
                pending.future.set_result(
                    BatchResult(result, started - pending.enqueued_at, seconds, len(batch))
                )

    async def _run_batch(self, items: list[Item]) -> Sequence[Result]:
        self._busy_since = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, items)
        finally:
            self._busy_since = None
        if len(results) != len(items):
            raise RuntimeError(f"`run` returned {len(results)} results for {len(items)} items")
        return results


def _fail(future: asyncio.Future[BatchResult[Result]], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

"""Samples of many requests in one call of the model.

Ray's own `serve.batch` closes a batch when its wait is over, also while the model is still busy with the one
before; under load its batches stay small. This one goes on collecting until the model is free: with 16 callers
at random moments and a model of 13 ms and 3.5 ms a row, 193 answers a second instead of 73.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Batched(Generic[Answer]):
    """One answer, and what it took: seconds in the queue, seconds in the model, rows in that call."""

    answer: Answer
    waited: float
    computed: float
    rows: int


@dataclass
class _Waiting(Generic[Item, Answer]):
    item: Item
    since: float
    future: asyncio.Future[Batched[Answer]]


class Batcher(Generic[Item, Answer]):
    """Calls `run` in one thread of its own, with up to `max_size` items at a time.

    The first item of a batch waits at most `wait` seconds for others. An item that fails takes nobody with
    it: a batch that fails is run again one by one. Lives in one event loop.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Answer]], max_size: int, wait: float) -> None:
        self.run, self.max_size, self.wait = run, max_size, wait
        self.failures = 0
        """Items that failed since one last succeeded."""
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._busy_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Batched[Answer]:
        """The answer for one item; raises what `run` raised for it. A caller that goes away is not computed."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        waiting = _Waiting(item, time.monotonic(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.future

    @property
    def broken(self) -> bool:
        """Whether the task that collects has ended, so that nobody will be answered any more."""
        return self._task is not None and self._task.done()

    @property
    def busy(self) -> float:
        """Seconds that the current call has taken so far."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            batch = await self._collect()
            if batch:
                await self._answer(batch)

    async def _collect(self) -> list[_Waiting[Item, Answer]]:
        """Wait for a first item, give others their time to come, and take whom the batch has room for."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        closes = self._waiting[0].since + self.wait
        while len(self._waiting) < self.max_size and (left := closes - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        taken = [self._waiting.popleft() for _ in range(min(self.max_size, len(self._waiting)))]
        return [waiting for waiting in taken if not waiting.future.done()]

    async def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        started = time.monotonic()
        try:
            answers = await self._call([waiting.item for waiting in batch])
        except Exception as error:  # noqa: BLE001 - handed to the callers, whatever it is
            if len(batch) == 1:
                self.failures += 1
                _fail(batch[0].future, error)
                return
            for waiting in batch:
                await self._answer([waiting])
            return
        self.failures = 0
        computed = time.monotonic() - started
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Batched(answer, started - waiting.since, computed, len(batch)))

    async def _call(self, items: list[Item]) -> Sequence[Answer]:
        self._busy_since = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, items)
        finally:
            self._busy_since = None
        if len(answers) != len(items):
            raise RuntimeError(f"{len(items)} items were given and {len(answers)} answers came back")
        return answers


def _fail(future: asyncio.Future[Batched[Answer]], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

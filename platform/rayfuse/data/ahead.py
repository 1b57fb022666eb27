"""What is made ahead of who consumes it: in a thread, or the batches of training in processes of their own."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch

from rayfuse.data.batches import Batch, Plan, SampleStore
from rayfuse.data.training import training_batch
from rayfuse.errors import RayfuseError
from rayfuse.spec.job import Job

Item = TypeVar("Item")
Step = tuple[list[Batch], int]
"""This rank's micro-batches of a global batch, and the rows of that over all ranks."""

_PRELOADED = ["torch", "rayfuse.data.ahead"]


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made ahead in a thread. An error in the thread is raised here."""
    ready: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, Item | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
            put((False, error))

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()


class Steps(Iterator[Step]):
    """The steps of an epoch that are left."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self._waited = 0.0

    def take(self) -> float:
        """Seconds that the consumer has waited for data since the last `take`."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __next__(self) -> Step:
        started = time.perf_counter()
        try:
            return next(self._steps)
        finally:
            self._waited += time.perf_counter() - started

    def close(self) -> None:
        """Make no more of them."""
        self._steps.close()  # type: ignore[attr-defined]


class Loader:
    """Makes the batches of one worker ahead of its training, always the same ones.

    In a thread of the worker; with `compute.data_processes` in so many processes, which live as long as the loader.
    teacher: its answers on all rows, by task: float32 (rows, …).
    """

    def __init__(
        self,
        store: SampleStore,
        plan: Plan,
        job: Job,
        rank: int = 0,
        world: int = 1,
        teacher: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._store, self._plan, self._job = store, plan, job
        self._rank, self._world, self._teacher = rank, world, teacher

    def steps(self, epoch: int, first: int = 0) -> Steps:
        """The steps of an epoch from number `first` on."""
        if not self._job.compute.data_processes:
            return Steps(prefetch(self._made_here(epoch, first), self._job.compute.prefetch))
        return Steps(self._made_elsewhere(epoch, first))

    def _numbers(self, epoch: int, step: int) -> list[list[int]]:
        return [part.tolist() for part in self._plan.step(epoch, step, self._rank, self._world)]

    def _made_here(self, epoch: int, first: int) -> Iterator[Step]:
        make = _Maker(self._store, self._job, self._teacher)
        for step in range(first, self._plan.steps):
            yield make.batches(epoch, self._numbers(epoch, step)), self._plan.size(step)

    def _made_elsewhere(self, epoch: int, first: int) -> Iterator[Step]:
        self._wanted.next = ((epoch, self._numbers(epoch, step)) for step in range(first, self._plan.steps))
        made = iter(self._processes)
        batches: list[Batch] | RayfuseError | None = None
        try:
            for step, batches in enumerate(made, first):
                if isinstance(batches, RayfuseError):
                    raise batches
                yield batches, self._plan.size(step)
        finally:
            batches = None  # an error and the frame that raised it would keep each other, and the processes
            self._wanted.next = iter(())
            for _ in made:  # at its end, PyTorch waits 5 s for each process whose batches nobody took
                pass

    @cached_property
    def _wanted(self) -> "_Wanted":
        return _Wanted()

    @cached_property
    def _processes(self) -> Any:
        """PyTorch's loader. Its processes come from a server that never forks a process with threads."""
        from multiprocessing import get_context

        compute = self._job.compute
        context: Any = get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        store = self._store.emptied(compute.keep_samples // compute.data_processes)
        return torch.utils.data.DataLoader(
            _Maker(store, self._job, self._teacher),
            sampler=self._wanted,
            batch_size=None,
            num_workers=compute.data_processes,
            prefetch_factor=max(1, -(-compute.prefetch // compute.data_processes)),
            multiprocessing_context=context,
            persistent_workers=True,
        )


class _Wanted(torch.utils.data.Sampler[Any]):
    """What the processes are to make next: an epoch and the row numbers of each micro-batch."""

    def __init__(self) -> None:
        self.next: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        while (wanted := next(self.next, None)) is not None:
            yield wanted


class _Maker(torch.utils.data.Dataset[Any]):
    """Makes batches of row numbers, in whichever process it is."""

    def __init__(self, store: SampleStore, job: Job, teacher: Mapping[str, torch.Tensor] | None) -> None:
        self._store, self._job, self._teacher = store, job, teacher

    def batches(self, epoch: int, numbers: list[list[int]]) -> list[Batch]:
        return [training_batch(part, self._store, self._job, epoch, self._teacher) for part in numbers]

    def __getitem__(self, wanted: tuple[int, list[list[int]]]) -> list[Batch] | RayfuseError:
        try:
            return self.batches(*wanted)
        except RayfuseError as error:  # raised there, PyTorch would wrap it in a text
            return error

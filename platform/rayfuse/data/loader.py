"""Prefetching: in a thread, or in processes that build the batches of training."""

import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch

from rayfuse.data.collate import Batch
from rayfuse.data.sampler import BatchSampler, GlobalBatch, SampleCache
from rayfuse.data.train_batches import build_train_batch
from rayfuse.errors import RayfuseError
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.data.cluster_batches import ClusterBatches

Item = TypeVar("Item")
StepBatches = tuple[list[Batch], GlobalBatch]
"""This rank's micro-batches of a global batch, and the size of the global batch over all ranks."""
_StepIndices = tuple[int, list[list[int]]]
"""An epoch, and the row indices of each micro-batch."""

_FORKSERVER_PRELOAD = ["torch", "rayfuse.data.loader"]
_JOIN_SECONDS = 5.0


def prefetch(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Yield the same items, produced ahead by a thread. An error in the thread is raised here.

    The thread ends with the generator: one that still ran PyTorch while the interpreter exits would abort the process.
    """
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
        except BaseException as error:  # noqa: BLE001 - raised in the consumer, whatever it is
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
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
        thread.join(_JOIN_SECONDS)


class BatchIterator(Iterator[StepBatches]):
    """Remaining steps of an epoch, with the time that the consumer waited for them."""

    def __init__(self, steps: Generator[StepBatches, None, None]) -> None:
        self._steps = steps
        self._wait_seconds = 0.0

    def pop_wait_seconds(self) -> float:
        """Return the seconds that the consumer has waited for data since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def __next__(self) -> StepBatches:
        started = time.perf_counter()
        try:
            return next(self._steps)
        finally:
            self._wait_seconds += time.perf_counter() - started

    def close(self) -> None:
        """Stop building batches."""
        self._steps.close()


class BatchLoader:
    """Loader of one worker's batches, built ahead of its training; the same batches in every run.

    They are built by a thread of the worker, by `compute.data_workers` processes, which live as long as the loader, or
    with `compute.decode: cluster` by tasks on the whole cluster.

    teacher_outputs: outputs of the teacher on all rows, by task: float32 (rows, …).
    """

    def __init__(
        self,
        sample_cache: SampleCache,
        batch_sampler: BatchSampler,
        job: Job,
        rank: int = 0,
        world_size: int = 1,
        teacher_outputs: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._sample_cache, self._batch_sampler, self._job = sample_cache, batch_sampler, job
        self._rank, self._world_size, self._teacher_outputs = rank, world_size, teacher_outputs

    def iter_epoch(self, epoch: int, start_step: int = 0) -> BatchIterator:
        """Return the steps of an epoch from `start_step` on."""
        if self._job.compute.decode == "cluster":
            steps = self._cluster_batches.iter_epoch(epoch, start_step)
            return BatchIterator(prefetch(steps, self._job.compute.prefetch_steps))
        if self._job.compute.data_workers:
            return BatchIterator(self._iter_workers(epoch, start_step))
        return BatchIterator(prefetch(self._iter_local(epoch, start_step), self._job.compute.prefetch_steps))

    def _row_indices(self, epoch: int, step: int) -> list[list[int]]:
        parts = self._batch_sampler.step_indices(epoch, step, self._rank, self._world_size)
        return [part.tolist() for part in parts]

    def _iter_local(self, epoch: int, start_step: int) -> Iterator[StepBatches]:
        dataset = BatchDataset(self._sample_cache, self._job, self._teacher_outputs)
        for step in range(start_step, self._batch_sampler.steps_per_epoch):
            yield (
                dataset.build(epoch, self._row_indices(epoch, step)),
                self._batch_sampler.global_batch(epoch, step),
            )

    def _iter_workers(self, epoch: int, start_step: int) -> Generator[StepBatches, None, None]:
        steps = range(start_step, self._batch_sampler.steps_per_epoch)
        self._step_queue.pending = ((epoch, self._row_indices(epoch, step)) for step in steps)
        built = iter(self._data_loader)
        batches: list[Batch] | RayfuseError | None = None
        try:
            for step, batches in enumerate(built, start_step):
                if isinstance(batches, RayfuseError):
                    raise batches
                yield batches, self._batch_sampler.global_batch(epoch, step)
        finally:
            batches = None  # an error and its frame would keep each other, and the processes, alive
            self._step_queue.pending = iter(())
            for _ in built:  # PyTorch waits 5 s at exit for each process whose batches were not consumed
                pass

    @cached_property
    def _cluster_batches(self) -> "ClusterBatches":
        from rayfuse.data.cluster_batches import ClusterBatches

        dataset = BatchDataset(self._sample_cache.empty_copy(0), self._job, self._teacher_outputs)
        return ClusterBatches(dataset, self._batch_sampler, self._rank, self._world_size)

    @cached_property
    def _step_queue(self) -> "_StepQueue":
        return _StepQueue()

    @cached_property
    def _data_loader(self) -> "torch.utils.data.DataLoader[list[Batch] | RayfuseError]":
        """PyTorch's loader, with processes of a fork server, which never forks a process with threads."""
        from multiprocessing import get_context
        from multiprocessing.context import ForkServerContext

        compute = self._job.compute
        context = get_context("forkserver")
        assert isinstance(context, ForkServerContext)
        context.set_forkserver_preload(_FORKSERVER_PRELOAD)
        cache = self._sample_cache.empty_copy(compute.sample_cache // compute.data_workers)
        return torch.utils.data.DataLoader(
            BatchDataset(cache, self._job, self._teacher_outputs),
            sampler=self._step_queue,
            batch_size=None,
            num_workers=compute.data_workers,
            prefetch_factor=max(1, -(-compute.prefetch_steps // compute.data_workers)),
            multiprocessing_context=context,
            persistent_workers=True,
        )


class _StepQueue(torch.utils.data.Sampler[_StepIndices]):
    """Steps that the processes build next."""

    def __init__(self) -> None:
        self.pending: Iterator[_StepIndices] = iter(())

    def __iter__(self) -> Iterator[_StepIndices]:
        while (step := next(self.pending, None)) is not None:
            yield step


class BatchDataset(torch.utils.data.Dataset[list[Batch] | RayfuseError]):
    """Batches by the row indices of a step, in any process."""

    def __init__(
        self, sample_cache: SampleCache, job: Job, teacher_outputs: Mapping[str, torch.Tensor] | None
    ) -> None:
        self._sample_cache, self.job, self._teacher_outputs = sample_cache, job, teacher_outputs

    def build(self, epoch: int, indices: list[list[int]]) -> list[Batch]:
        """Build a batch of each list of row indices."""
        return [
            build_train_batch(part, self._sample_cache, self.job, epoch, self._teacher_outputs)
            for part in indices
        ]

    def __getitem__(self, step: _StepIndices) -> list[Batch] | RayfuseError:
        try:
            return self.build(*step)
        except RayfuseError as error:  # PyTorch would convert a raised error to a text
            return error

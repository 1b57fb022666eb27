"""Training batches that tasks of Ray Data build on all CPUs of the cluster (`compute.decode: cluster`)."""

import logging
import pickle
from collections.abc import Generator
from contextlib import closing, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from rayfuse.data.collate import Batch
from rayfuse.data.sampler import BatchSampler
from rayfuse.errors import RayfuseError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from rayfuse.data.loader import BatchDataset, StepBatches

_MAX_TASKS = 16
"""Steps that are built at the same time for each worker."""
_MAX_STEPS = 10_000
"""Steps of one execution of Ray Data, which plans all of them when it starts."""
_STORE_FRACTION = 0.25
"""Fraction of the cluster's object store for batches that wait for a worker."""


class ClusterBatches:
    """Batches of one worker in the order of its steps, of all remaining epochs in one stream.

    A stream continues over the epochs, so that its tasks are not started again in each of them.
    """

    def __init__(self, dataset: "BatchDataset", sampler: BatchSampler, rank: int, world_size: int) -> None:
        self._dataset, self._sampler = dataset, sampler
        self._rank, self._world_size = rank, world_size
        self._stream: Generator[list[Batch], None, None] | None = None
        self._next_step = -1

    def iter_epoch(self, epoch: int, start_step: int) -> Generator["StepBatches", None, None]:
        """Yield the steps of an epoch. Raises the RayfuseError of a row that cannot be decoded."""
        first = epoch * self._sampler.steps_per_epoch + start_step
        if self._stream is None or first != self._next_step:
            if self._stream is not None:
                with suppress(ValueError):  # a thread that prefetches still waits in it
                    self._stream.close()
            self._stream = self._start(first)
        for step in range(start_step, self._sampler.steps_per_epoch):
            self._next_step = -1  # until the consumer has asked for the step after this one
            batches = next(self._stream)
            yield batches, self._sampler.global_batch(epoch, step)
            self._next_step = epoch * self._sampler.steps_per_epoch + step + 1

    def _start(self, first: int) -> Generator[list[Batch], None, None]:
        """Build the steps from `first` on, counted over all epochs."""
        import ray

        end = self._dataset.job.train.epochs * self._sampler.steps_per_epoch
        shared = ray.put((self._dataset, self._sampler))
        for start in range(first, end, _MAX_STEPS):
            yield from self._run(shared, start, min(_MAX_STEPS, end - start))

    def _run(
        self, shared: "ray.ObjectRef[Any]", first: int, num_steps: int
    ) -> Generator[list[Batch], None, None]:
        import ray
        import ray.data

        rank, world_size = self._rank, self._world_size

        def build(item: dict[str, Any]) -> dict[str, Any]:
            return {"batches": _build_step(shared, first + int(item["id"]), rank, world_size)}

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        store = ray.cluster_resources().get("object_store_memory", 0) * _STORE_FRACTION / world_size
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=store)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with ray.data.DataContext.current(context):
            steps = ray.data.range(num_steps, override_num_blocks=num_steps)
            built = steps.map(build, compute=ray.data.TaskPoolStrategy(min(_MAX_TASKS, num_steps)))
        # Without Ray Data's threads for prefetching, which would connect to Ray again after a shutdown.
        tables = built.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
        with closing(cast("Generator[pa.Table, None, None]", iter(tables))) as steps_built:
            for table in steps_built:
                content = table.column("batches")[0].as_py()
                batches = pickle.loads(content)  # noqa: S301 - a task of this run has made it
                if isinstance(batches, RayfuseError):
                    raise batches
                yield batches


def _build_step(shared: "ray.ObjectRef[Any]", number: int, rank: int, world_size: int) -> bytes:
    dataset, sampler = _fetch(shared)
    epoch, step = divmod(number, sampler.steps_per_epoch)
    parts = sampler.step_indices(epoch, step, rank, world_size)
    return pickle.dumps(dataset[epoch, [part.tolist() for part in parts]], protocol=5)


@lru_cache(maxsize=1)
def _fetch(shared: "ray.ObjectRef[Any]") -> tuple["BatchDataset", BatchSampler]:
    """Return the dataset and the order of its rows, once per process of the cluster."""
    import ray

    return cast("tuple[BatchDataset, BatchSampler]", ray.get(shared))

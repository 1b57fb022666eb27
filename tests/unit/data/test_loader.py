"""Prefetching in threads and processes gives the same batches from any step on."""

import gc
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import Batch
from rayfuse.data.dataset import load_dataset
from rayfuse.data.loader import BatchIterator, BatchLoader, prefetch
from rayfuse.data.sampler import BatchSampler, SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.data.train_batches import build_train_batch
from rayfuse.errors import DataError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {
        "train.group_by_length": True,
        "train.batch_size": 7,
        "train.gradient_accumulation_steps": 2,
        "train.modality_dropout": 0.3,
        "train.subset_loss": {"sampling": "random"},
    }
    return load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("ahead"), **overrides))


def loader(
    loaded: Any, processes: int = 0, rank: int = 0, world: int = 1
) -> tuple[BatchLoader, BatchSampler, SampleCache]:
    job, dataset = loaded
    job = job.model_copy(update={"compute": job.compute.model_copy(update={"data_workers": processes})})
    rows = dataset.splits["train"]
    store, plan = SampleCache(rows, Preprocessor(job.inputs, job.tasks)), BatchSampler.from_job(rows, job)
    return BatchLoader(store, plan, job, rank, world, teacher_outputs(store)), plan, store


def teacher_outputs(store: SampleCache) -> dict[str, torch.Tensor]:
    return {"answer": torch.arange(len(store) * 1.0)}


def plain(batch: Batch) -> list[Any]:
    parts = [(name, part.index.tolist(), sorted(part.features or {})) for name, part in batch.inputs.items()]
    tensors = [t for part in batch.inputs.values() for _, t in sorted((part.features or {}).items())]
    kept = [
        batch.weights,
        batch.targets.get("answer"),
        batch.source_index,
        (batch.teacher_outputs or {}).get("answer"),
    ]
    return [parts, [None if t is None else t.tolist() for t in [*tensors, *kept]]]


def on_the_spot(loaded: Any, epoch: int, first: int, rank: int = 0, world: int = 1) -> Iterator[Any]:
    _, plan, store = loader(loaded)
    for step in range(first, plan.steps_per_epoch):
        parts = plan.step_indices(epoch, step, rank, world)
        batches = [
            build_train_batch(p.tolist(), store, loaded[0], epoch, teacher_outputs(store)) for p in parts
        ]
        yield [plain(batch) for batch in batches], plan.global_batch(epoch, step)


def everything(steps: BatchIterator) -> list[Any]:
    return [([plain(batch) for batch in batches], size) for batches, size in steps]


def test_batches_of_a_thread(loaded: Any) -> None:
    made, plan, _ = loader(loaded, rank=1, world=2)
    for first in (0, 3, plan.steps_per_epoch):
        assert everything(made.iter_epoch(1, first)) == list(on_the_spot(loaded, 1, first, 1, 2))


def test_batches_of_processes(loaded: Any) -> None:
    made, _, _ = loader(loaded, processes=2)
    steps = made.iter_epoch(0)
    next(steps)
    steps.close()
    assert everything(made.iter_epoch(0)) == list(on_the_spot(loaded, 0, 0))
    assert everything(made.iter_epoch(3, start_step=2)) == list(on_the_spot(loaded, 3, 2))


def test_processes_end_with_the_loader(loaded: Any) -> None:
    before = set(multiprocessing.active_children())
    made, _, _ = loader(loaded, processes=2)
    steps = made.iter_epoch(0)
    next(steps)
    steps.close()
    processes = set(multiprocessing.active_children()) - before
    del made, steps
    gc.collect()
    assert [process.exitcode for process in processes] == [0, 0]  # else PyTorch had to terminate them


@pytest.mark.parametrize("processes", [0, 1])
def test_errors_of_threads_and_processes(processes: int, tmp_path: Path) -> None:
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **{"train.batch_size": 48}))
    for image in tmp_path.glob("train*.png"):
        image.unlink()
    before = set(multiprocessing.active_children())
    made, _, _ = loader((job, dataset), processes)
    with pytest.raises(
        DataError, match=r"^.*train.jsonl:\d+: image: .*: no such file; the row was valid when"
    ) as raised:
        next(made.iter_epoch(0))
    del raised
    started = set(multiprocessing.active_children()) - before
    assert len(started) == processes
    del made
    assert all(process.exitcode == 0 for process in started)


def test_wait_seconds() -> None:
    clock = iter([([], 1)] * 3)
    steps = BatchIterator(step for step in clock)
    list(steps)
    assert steps.pop_wait_seconds() > 0


def test_prefetch_preserves_order() -> None:
    assert list(prefetch(iter(range(20)), depth=3)) == list(range(20))
    assert list(prefetch(iter(()))) == []


def test_prefetch_is_bounded() -> None:
    made: list[int] = []
    items = prefetch((made.append(n) or n for n in range(100)), depth=2)
    assert next(items) == 0
    wait_until(lambda: len(made) >= 4)
    time.sleep(0.05)
    assert len(made) <= 5
    items.close()


def test_prefetch_raises_the_error_of_its_thread() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise DataError("no more")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(DataError, match="no more"):
        next(items)
    wait_until(lambda: not prefetching())


def test_prefetch_ends_its_thread_when_closed() -> None:
    items = prefetch(iter(range(1000)))
    next(items)
    assert prefetching()
    items.close()
    assert not prefetching()


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Batches made ahead are those made on the spot, from any step on, in threads and in processes."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.ahead import Loader, Steps
from rayfuse.data.batches import Batch, Plan, SampleStore
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import SampleMaker
from rayfuse.data.training import training_batch
from rayfuse.errors import DataError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {
        "train.group_by_length": True,
        "train.batch_size": 7,
        "train.accumulate": 2,
        "train.input_dropout": 0.3,
        "train.subset_loss": {"draw": "random"},
    }
    return load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("ahead"), **overrides))


def loader(
    loaded: Any, processes: int = 0, rank: int = 0, world: int = 1
) -> tuple[Loader, Plan, SampleStore]:
    job, dataset = loaded
    job = job.model_copy(update={"compute": job.compute.model_copy(update={"data_processes": processes})})
    rows = dataset.splits["train"]
    store, plan = SampleStore(rows, SampleMaker(job.inputs, job.tasks)), Plan.of(rows, job)
    return Loader(store, plan, job, rank, world, {"answer": torch.arange(len(rows) * 1.0)}), plan, store


def plain(batch: Batch) -> list[Any]:
    parts = [(name, part.index.tolist(), sorted(part.features or {})) for name, part in batch.inputs.items()]
    tensors = [t for part in batch.inputs.values() for _, t in sorted((part.features or {}).items())]
    kept = [batch.weights, batch.targets.get("answer"), batch.source, (batch.teacher or {}).get("answer")]
    return [parts, [None if t is None else t.tolist() for t in [*tensors, *kept]]]


def on_the_spot(loaded: Any, epoch: int, first: int, rank: int = 0, world: int = 1) -> Iterator[Any]:
    made, plan, store = loader(loaded)
    for step in range(first, plan.steps):
        parts = plan.step(epoch, step, rank, world)
        batches = [training_batch(p.tolist(), store, loaded[0], epoch, made._teacher) for p in parts]
        yield [plain(batch) for batch in batches], plan.size(step)


def everything(steps: Steps) -> list[Any]:
    return [([plain(batch) for batch in batches], rows) for batches, rows in steps]


def test_a_thread_makes_the_same_batches_from_any_step_on(loaded: Any) -> None:
    made, plan, _ = loader(loaded, rank=1, world=2)
    for first in (0, 3, plan.steps):
        assert everything(made.steps(1, first)) == list(on_the_spot(loaded, 1, first, 1, 2))


def test_processes_make_the_same_batches_and_may_be_left_early(loaded: Any) -> None:
    made, _, _ = loader(loaded, processes=2)
    steps = made.steps(0)
    next(steps)
    steps.close()
    assert everything(made.steps(0)) == list(on_the_spot(loaded, 0, 0))
    assert everything(made.steps(3, first=2)) == list(on_the_spot(loaded, 3, 2))


def test_processes_that_are_left_early_end_by_themselves(loaded: Any) -> None:
    made, _, _ = loader(loaded, processes=2)
    steps = made.steps(0)
    next(steps)
    steps.close()
    processes = made._processes._iterator._workers
    del made, steps
    gc.collect()
    assert [process.exitcode for process in processes] == [0, 0]  # else PyTorch had to terminate them


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_keeps_its_kind_and_its_words(processes: int, tmp_path: Path) -> None:
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **{"train.batch_size": 48}))
    for picture in tmp_path.glob("train*.png"):
        picture.unlink()
    made, _, _ = loader((job, dataset), processes)
    with pytest.raises(
        DataError, match=r"^.*train.jsonl:\d+: image: .*: no such file; it could be read when"
    ) as raised:
        next(made.steps(0))
    del raised
    if processes:
        [process] = made._processes._iterator._workers
        del made
        assert process.exitcode == 0


def test_the_time_that_is_waited_is_counted() -> None:
    clock = iter([([], 1)] * 3)
    steps = Steps(step for step in clock)
    list(steps)
    assert steps.take() > 0

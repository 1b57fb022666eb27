"""Ingest and validation on a Ray cluster give the same rows as in one process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.cluster.local import LocalCluster
from rayfuse.data.dataset import load_dataset
from rayfuse.data.loader import BatchIterator, BatchLoader
from rayfuse.data.ray_tasks import map_on_ray
from rayfuse.data.sampler import BatchSampler, SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.data.store import RowStore
from rayfuse.errors import DataError

pytestmark = pytest.mark.ray
RAYFUSE = Path(sys.executable).with_name("rayfuse")


def test_the_same_dataset_on_a_cluster_and_in_one_process(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    import ray

    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 0.1})
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, '{"text": null, "label": "red"}', "no row"]))
    fitted, here = load_dataset(job)
    with ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True):
        again, there = load_dataset(job, RowStore.create_in(str(tmp_path / "rows")), map_on_ray)
        assert again == fitted
        assert there.digests == here.digests
        assert there.report == here.report
        for name, split in here.splits.items():
            assert list(there.splits[name]) == list(split)
        del there
        assert not list((tmp_path / "rows").iterdir()), "the cluster holds no reference to the store"
        (tmp_path / "test.jsonl").write_bytes(b"\xff\n")
        with pytest.raises(DataError, match=r"^.*test.jsonl:1: not UTF-8"):
            load_dataset(job, RowStore.create_in(str(tmp_path / "rows")), map_on_ray)


def test_batches_that_the_cluster_builds_are_those_of_a_worker(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    """In a process that ends at once, as workers do: a thread of Ray Data would connect again after a shutdown."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    script = f"import os, test_rows; test_rows.compare_batches({str(tmp_path)!r}); os._exit(0)"
    run([sys.executable, "-c", script], tmp_path, {**os.environ, "PYTHONPATH": path})


def compare_batches(folder: str) -> None:
    """Assert that the cluster builds the batches of a worker, and raises its errors."""
    import ray

    overrides = {"train.batch_size": 8, "train.modality_dropout": 0.5, "train.epochs": 3}
    job, dataset = load_dataset(tiny_jobs.tiny_job(Path(folder), **overrides))
    rows = dataset.splits["train"]

    def loader(place: str) -> BatchLoader:
        chosen = job.override(**{"compute.decode": place})
        samples = SampleCache(rows, Preprocessor(job.inputs, job.tasks))
        return BatchLoader(samples, BatchSampler.from_job(rows, job), chosen, rank=1, world_size=2)

    ray.init(log_to_driver=False, logging_level="ERROR")
    here, there = loader("workers"), loader("cluster")
    for epoch, start in ((0, 0), (1, 0), (0, 2)):  # the last one as after a resume
        assert contents(there.iter_epoch(epoch, start)) == contents(here.iter_epoch(epoch, start))
    for image in Path(folder).glob("train*.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"train.jsonl:\d+: image: .*: no such file; the row was valid when"):
        list(loader("cluster").iter_epoch(0))


def test_a_worker_trains_on_batches_that_the_cluster_builds(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    tiny_jobs.tiny_job(tmp_path)
    options = ["--set=compute.decode=cluster", "--set=train.epochs=3"]
    run([RAYFUSE, "train", "job.yaml", *options], tmp_path, dict(os.environ))
    [journal] = (tmp_path / "runs").glob("tiny/*/metrics.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    losses = {r["step"]: r["metrics"]["train/loss"] for r in records if "train/loss" in r.get("metrics", {})}
    assert losses[max(losses)] < losses[min(losses)]


def run(command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr


def contents(steps: BatchIterator) -> list[object]:
    """Return the rows, features and targets of each batch, and the rows of each global batch."""
    return [
        (
            [
                [
                    {name: part.index.tolist() for name, part in batch.inputs.items()},
                    [t.tolist() for part in batch.inputs.values() for t in (part.features or {}).values()],
                    batch.targets["answer"].tolist(),
                ]
                for batch in batches
            ],
            num_rows,
        )
        for batches, num_rows in steps
    ]

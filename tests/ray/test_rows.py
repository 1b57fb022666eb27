"""Ingest and validation on a Ray cluster give the same rows as in one process."""

from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.cluster.local import LocalCluster
from rayfuse.data.dataset import load_dataset
from rayfuse.data.ray_tasks import map_on_ray
from rayfuse.data.store import RowStore
from rayfuse.errors import DataError

pytestmark = pytest.mark.ray


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

"""Rows that a cluster reads and checks are those that one process reads and checks."""

from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.cluster.local import LocalCluster
from rayfuse.data.cluster import spread
from rayfuse.data.dataset import load_dataset
from rayfuse.data.store import Store
from rayfuse.errors import DataError

pytestmark = pytest.mark.ray


def test_a_cluster_reads_and_checks_as_one_process_does(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    import ray

    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 0.1})
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, '{"text": null, "label": "red"}', "no row"]))
    fitted, here = load_dataset(job)
    with ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True):
        again, there = load_dataset(job, Store.below(str(tmp_path / "rows")), spread)
        assert again == fitted
        assert there.digests == here.digests
        assert there.findings == here.findings
        for name, split in here.splits.items():
            assert list(there.splits[name]) == list(split)
        del there
        assert not list((tmp_path / "rows").iterdir()), "the cluster keeps no hold of the store"
        (tmp_path / "test.jsonl").write_bytes(b"\xff\n")
        with pytest.raises(DataError, match=r"^.*test.jsonl:1: not UTF-8"):
            load_dataset(job, Store.below(str(tmp_path / "rows")), spread)
